"""train_llc.py --dry_run: the plan's figures on a shipped recipe, its errors, and that it writes nothing."""

import pytest
import yaml

import train_llc
from llc.errors import UserError
from tests.tools.chaos import make_betons

RN50 = "--config=rn50_configs/llc_20bit.yaml"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_betons(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def plan(tiny, tmp_path, capsys):
    """plan(*words) -> what a dry run prints; asserts that the run folder's folder stays as it is."""

    def of(*words, val=tiny[1]):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        words = [*words, f"--data.train_dataset={tiny[0]}", f"--data.val_dataset={val}"]
        try:
            train_llc.main([*words, f"--logging.folder={tmp_path / 'runs'}", "--dry_run"])
        finally:
            assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        return capsys.readouterr().out

    return of


def test_the_plan_of_a_recipe_on_real_betons(plan, tmp_path):
    text = plan(
        RN50, "--training.batch_size=20", "--training.ema_decay=0.9", "--training.accumulation_steps=2",
        "--logging.name=mine", "--codebook.epochs=8", "--codebook.lr=1", "--codebook.lr_peak_epoch=2",
        "--resolution.min_res=160", "--resolution.max_res=192", "--resolution.start_ramp=5",
        "--resolution.end_ramp=6", "--instance.epochs=2", "--instance.distillation=0",
    )  # fmt: skip
    recipe, _, rest = text.partition("\n\n")
    assert yaml.safe_load(recipe)["training"]["batch_size"] == 20
    assert yaml.safe_load(recipe)["model"]["arch"] == "resnet50"
    assert "100 images of 5 classes" in rest and "val: 20 images" in rest
    assert "images per step: 20; of each process: 20, in 2 parts of 10" in rest
    assert "codebook stage: 8 epochs of 5 steps, 40 steps in total" in rest
    assert (
        "start 0.0001 (step 0), end of warm-up 1 (step 10), middle 0.6667 (step 20), end 0.03333 (step 39)"
        in rest
    )
    # ResNet50 without its classifier: 23,508,032; a projection to 20 bits; a codebook of 5 classes
    assert "23,549,092 trainable of 23,549,092, 100 of them the codebook" in rest
    assert "23,548,992 trainable of 23,549,092, 100 of them the codebook, which is frozen" in rest
    assert "epochs 1 to 6: 160 pixels" in rest and "epochs 7 to 8: 192 pixels" in rest
    # about 4.1 G multiply-adds forward at 224 pixels: x 2 x 3 for both passes, x (160 / 224)^2
    gflop = float(rest.partition("160 pixels, ")[2].partition(" GFLOP")[0])
    assert gflop == pytest.approx(4.1 * 6 * (160 / 224) ** 2, rel=0.05)
    assert f"would write {tmp_path / 'runs' / 'mine'}/" in rest
    for name in ("config.yaml", "results.csv", "checkpoints/codebook_ema.pth", "checkpoints/last.pth"):
        assert f"  {name}\n" in rest
    encoded = "the train set is encoded, and decoders are fitted to its codes: posterior"
    assert encoded in rest and "  decoder.npz\n" in rest
    text = plan(RN50, "--training.batch_size=20", "--validation.fit_decoder=0")
    assert encoded not in text and "decoder.npz" not in text


def test_parts_of_several_processes(plan, monkeypatch):
    monkeypatch.setattr("llc.environment.world_size", lambda: 4)
    assert "images per step: 20; of each process: 5" in plan(RN50, "--training.batch_size=20")
    with pytest.raises(UserError, match="batch_size = 18 is the total over 4 processes"):
        plan(RN50, "--training.batch_size=18")


def test_what_a_run_refuses_a_dry_run_refuses_too(plan, tmp_path):
    small = (RN50, "--training.batch_size=20")
    with pytest.raises(UserError, match="nowhere.beton"):
        plan(*small, val="nowhere.beton")
    with pytest.raises(UserError, match="model.weights = nothing"):
        plan(*small, "--model.weights=nothing")
    with pytest.raises(UserError, match="too large"):
        plan(RN50, "--training.batch_size=4096")
    with pytest.raises(UserError, match="no code of 20 bits"):
        plan(*small, "--codes.min_distance=19")
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    (tmp_path / "runs" / "taken" / "config.yaml").write_text("")
    with pytest.raises(UserError, match="exists already"):
        plan(*small, "--logging.name=taken")
    with pytest.raises(UserError, match="not a run folder"):
        plan(*small, f"--resume={tmp_path / 'runs'}")


def test_weights_that_would_be_downloaded_are_only_named(plan, monkeypatch):
    monkeypatch.setattr("llc.training.plan.load_weights", None)
    text = plan(RN50, "--training.batch_size=20", "--model.weights=IMAGENET1K_V2")
    assert "backbone weights from IMAGENET1K_V2, published weights, which a run downloads" in text
    timm = ("--model.arch=timm:resnet18", "--model.weights=a1_in1k")
    assert "backbone weights from a1_in1k, published" in plan(RN50, "--training.batch_size=20", *timm)


@pytest.mark.parametrize(
    "weights",
    [("resnet50", "IMAGENET1K_V2"), ("timm:resnet18", "a1_in1k"), ("convnext_tiny", "IMAGENET1K_V1")],
)
def test_published_weights_of_other_classes_make_no_codebook(weights, plan):
    """What a run would say after it has downloaded them."""
    arch, name = weights
    words = (f"--model.arch={arch}", f"--model.weights={name}", "--training.batch_size=20")
    finetune = "--config=rn50_configs/llc_20bit_finetune.yaml"
    with pytest.raises(UserError, match="its classifier has 1,000 classes, but the data has 5; .* dense"):
        plan(finetune, *words)
    dense = (
        "--training.stages=dense,instance",
        "--dense.epochs=1",
        "--dense.lr=0.1",
        "--dense.lr_peak_epoch=0",
    )
    assert f"backbone weights from {name}" in plan(finetune, *words, *dense)
