"""What is reported where a decoder has no figure, as before its run ends, or in epochs before it existed."""

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


def test_the_line_of_an_epoch_does_not_name_decoders_without_a_figure():
    line = {"epoch": 1, "loss": 0.5, "images_per_second": 10.0}
    metrics = {"top1_class": 0.5, "top1_mhd": 0.25, "top1_ed": 0.125}
    stage = CodebookStage(epochs=2, lr=0.1)
    assert results.epoch_text(stage, line, metrics, flip=False) == (
        "codebook 1/2: loss 0.5000, class 50.00, MHD 25.00, ED 12.50 % top-1, 10 images/s"
    )
    assert "ED 12.50, posterior 75.00 % top-1" in results.epoch_text(
        stage, line, metrics | {"top1_posterior": 0.75}, flip=False
    )
