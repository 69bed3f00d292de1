"""results.csv of a run whose best epoch was recorded before a decoder existed."""

from types import SimpleNamespace

from llc.stages import CodebookStage
from llc.training import results
from llc.training.state import Progress


def test_a_metric_that_the_best_epoch_lacks_is_nan():
    config = SimpleNamespace(
        stages=("codebook",),
        stage=lambda name: CodebookStage(epochs=2, lr=0.1),
        validation=SimpleNamespace(lr_tta=False),
    )
    finals = {"codebook": {"top1_class": 0.5, "top1_new": 0.25}}
    progress = Progress(stage=1, finals=finals, bests={"codebook": {"top1_class": 0.75}})
    assert results.rows(config, progress) == [
        ["codebook/top1_class", "0.500000", "0.750000", 1],
        ["codebook/top1_new", "0.250000", "nan", 0],
    ]
    assert results.headline_texts(config, progress) == ["codebook stage, top1_class: 50.00 %"]
