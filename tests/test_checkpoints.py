"""Weights in and out: the original's files, dense models and backbones.

They are compared with networks that share no code with llc's.
"""

import io
import re

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision import transforms

import llc
from llc import backbones, checkpoints
from llc.checkpoints import load_weights
from llc.codebook import load_codebook
from llc.codes import pack_bits
from llc.data.batches import BetonImages
from llc.data.preprocessing import Preprocessing
from llc.data.shards import open_shards
from llc.data.writer import WriterConfig, write_beton
from llc.distributed import Processes
from llc.errors import UserError
from llc.evaluate import __main__ as evaluate
from llc.export import __main__ as export
from llc.network import IMAGENET_MEAN, IMAGENET_STD, BlurConv2d, Network, apply_blurpool
from llc.training import config as training_config
from llc.training.trainer import Trainer
from tests import original
from tests.conftest import SMALL, trained_network

# Only rounding differs, because the same sums are computed in other orders and memory layouts. It is relative
# to the largest value, because z and logits are sums that may be near 0.
TOLERANCE = 1e-5
ANY = Preprocessing(32, 1.0, "area", IMAGENET_MEAN, IMAGENET_STD)


def agree(ours, reference):
    return bool(((ours - reference).abs() <= TOLERANCE * reference.abs().max()).all())


@pytest.fixture(scope="module")
def class_model(tmp_path_factory):
    """(the original's ResNet50 with 20 bits and 50 classes, its model_best.pth, its codebook.npy)."""
    model = original.random_values(original.OriginalResNet(20, 50))
    return model, *original.save_files(model, tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def instance_model(tmp_path_factory):
    """(network of instance codes, ResNet18 with 12 bits, its model_best.pth)."""
    model = original.random_values(original.resnet18(12, None), seed=1)
    return model, original.save_files(model, tmp_path_factory.mktemp("original"))[0]


@torch.no_grad()
def test_the_published_form_gives_the_originals_logits_and_classes(class_model):
    model, path, codebook_path = class_model
    images = original.pictures(12, seed=5)
    expected = model(original.normalised(images))
    encoder = llc.load(path)
    assert encoder.network.options == {
        "arch": "resnet50",
        "num_bits": 20,
        "num_classes": 50,
        "width": 64,
        "use_blurpool": False,
        "logit_scale": 1.0,
        "normalize": "none",
        "head": "linear",
        "hidden": 0,
    }
    z = encoder(images)
    assert agree(encoder.network.class_logits(z), expected)
    assert len(set(expected.argmax(1).tolist())) > 2
    assert encoder.network.class_logits(z).argmax(1).tolist() == expected.argmax(1).tolist()
    # the original's Hamming decoding: its signs times the codebook's, the largest product
    signs, class_signs = (
        torch.where(z > 0, 1.0, -1.0),
        torch.where(torch.from_numpy(np.load(codebook_path)) > 0, 1.0, -1.0),
    )
    products = signs @ class_signs.T
    decoded = llc.decode_mhd(pack_bits(z), encoder.class_codes)[:, 0]
    assert (products.gather(1, decoded[:, None])[:, 0] == products.max(1).values).all()
    assert torch.equal(encoder.codebook, load_codebook(codebook_path))


@torch.no_grad()
def test_a_model_of_instance_codes_encodes_and_wants_a_codebook_to_classify(instance_model, tmp_path):
    model, path = instance_model
    images = original.pictures(12, seed=6)
    encoder = llc.load(path)
    assert agree(encoder(images), model(original.normalised(images))) and encoder.stage == "instance"
    assert len(torch.unique(pack_bits(encoder(images)), dim=0)) > 2
    encoder.save(tmp_path / "encoder.safetensors")
    assert torch.equal(llc.load(tmp_path / "encoder.safetensors").encode(images), encoder.encode(images))
    with pytest.raises(UserError, match="codebook=FILE.npy"):
        encoder.classify(images)
    values = np.random.default_rng(0).normal(size=(7, 12))
    for shape in ((7, 12), (7, 12, 1, 1), (84,)):
        np.save(tmp_path / "codebook.npy", values.reshape(shape))
        encoder = llc.load(path, codebook=tmp_path / "codebook.npy")
        assert np.array_equal(encoder.codebook, values.astype(np.float32)) and encoder.classify(
            images[:2]
        ).labels.shape == (2, 5)
    np.save(tmp_path / "codebook.npy", values[:, :11])
    with pytest.raises(UserError, match="11 bits.*12 are needed"):
        llc.load(path, codebook=tmp_path / "codebook.npy")


@torch.no_grad()
def test_a_run_goes_back_to_the_originals_form_strictly(finished_run, run_llc, tmp_path, capsys):
    images = original.pictures(9, seed=7, size=32)
    for stage, num_classes in (("codebook", 6), ("instance", None)):
        words = [str(finished_run), "--to=original", f"--checkpoint={stage}", f"--out={tmp_path / stage}"]
        if num_classes is None:
            said = run_llc("-m", "llc.export", *words).stdout  # the command itself, once
        else:
            export.main(words)
            said = capsys.readouterr().out
        assert "--validation.resolution=32 --validation.crop_ratio=1 --validation.resize=area" in said
        model = original.resnet18(10, num_classes, width=8).eval()
        state = torch.load(tmp_path / stage / "model_best.pth", weights_only=True)["state_dict"]
        nn.DataParallel(model).load_state_dict(state, strict=True)
        encoder = llc.load(finished_run, checkpoint=stage)
        assert (
            encoder.network.logit_scale == 10**-0.5
        )  # the demo's recipe: what the original has no place for
        z = encoder.network(images)
        assert agree(
            model(original.normalised(images)), encoder.network.class_logits(z) if num_classes else z
        )
        assert "resnet18 of width 8" in said
        values = np.load(tmp_path / stage / "codebook.npy")
        assert values.dtype == np.float32 and (values == np.load(finished_run / "codebook.npy")).all()
        # and in again
        again = llc.load(tmp_path / stage / "model_best.pth", codebook=tmp_path / stage / "codebook.npy")
        assert torch.equal(pack_bits(again.network(images)), pack_bits(z)) and again.stage == stage


def test_the_originals_files_start_either_stage(class_model, instance_model, tmp_path):
    _, path, codebook_path = class_model
    network = Network("resnet50", 20, 50, use_blurpool=True)
    said = load_weights(network, str(path), "resnet50")
    state = torch.load(path, weights_only=True)["state_dict"]
    assert (
        "its codebook left out (codes.init_codebook takes one)" in said and network.codebook.abs().sum() == 0
    )
    assert torch.equal(network.projection.weight, state["module.fc_lr.weight"][:, :, 0, 0])
    assert torch.equal(network.backbone.layer3[2].bn2.running_var, state["module.layer3.2.bn2.running_var"])
    with pytest.raises(
        UserError,
        match=r"1 keys of another shape: projection.weight \(\[20, 2048\] in the file, \[32, 2048\] here\)",
    ):
        load_weights(Network("resnet50", 32, 50), str(path), "resnet50")
    assert "left out" not in load_weights(Network("resnet18", 12, 3), str(instance_model[1]), "resnet18")


@torch.no_grad()
def test_the_trainer_takes_them(finished_run, betons, tmp_path, capsys):
    """A codebook stage is exported in the original's form, and starts an instance stage."""
    export.main([str(finished_run), "--to=original", "--checkpoint=codebook", f"--out={tmp_path}"])
    values = np.load(tmp_path / "codebook.npy")
    np.save(tmp_path / "codebook.npy", values.reshape(-1))
    config, _ = training_config.read(
        [
            *SMALL,
            f"--data.train_dataset={betons[0]}",
            f"--data.val_dataset={betons[1]}",
            "--training.stages=instance",
            f"--model.weights={tmp_path / 'model_best.pth'}",
            f"--codes.init_codebook={tmp_path / 'codebook.npy'}",
        ],
        description="",
    )
    trainer = Trainer(config, None, Processes())
    assert "a model of the original LLC code, its codebook left out" in capsys.readouterr().out
    assert np.array_equal(trainer.network.codebook.detach(), values) and values.shape == (6, 10)
    images = original.pictures(5, seed=4, size=32)
    z = llc.load(finished_run, checkpoint="codebook").network(images)
    # The codebook stage's logit scale is now in the projection: z is scaled by it, its signs are the same.
    assert agree(trainer.network.eval()(images), z * 10**-0.5)


def test_a_hidden_layer_has_no_place_in_other_forms(tmp_path):
    network = Network("resnet18", 6, 5, hidden=8)
    torch.save(network.state_dict(), tmp_path / "network.pth")
    for write in (
        lambda: checkpoints.to_original(network, with_codebook=True),
        lambda: checkpoints.to_backbone(network, with_classifier=True),
    ):
        with pytest.raises(UserError, match="codes.hidden = 8: this form has no place"):
            write()
    assert len(checkpoints.to_backbone(network, with_classifier=False)) == len(network.backbone.state_dict())
    with pytest.raises(
        UserError, match="trained with codes.hidden = 8, but here it is 0: give --codes.hidden=8"
    ):
        load_weights(Network("resnet18", 6, 5), str(tmp_path / "network.pth"), "resnet18")
    expected = Network("resnet18", 6, 5, head="expected")
    torch.save(expected.state_dict(), tmp_path / "expected.pth")
    with pytest.raises(UserError, match="codes.head = expected: this form has no place"):
        checkpoints.to_original(expected, with_codebook=True)
    for path, into in (("expected.pth", network), ("network.pth", expected)):
        with pytest.raises(UserError, match=r"was trained with codes.head = (\w+), but .*--codes.head=\1"):
            load_weights(into, str(tmp_path / path), "resnet18")
    other = Network("resnet18", 6, 5, hidden=8)
    load_weights(other, str(tmp_path / "network.pth"), "resnet18")
    assert torch.equal(other.hidden[0].weight, network.hidden[0].weight)


def dense_state(form):
    state = torchvision.models.resnet18(num_classes=5).state_dict()
    if form == "DataParallel":
        return {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
    if form == "compiled":
        return {"model": {f"_orig_mod.{name}": value for name, value in state.items()}}
    if form == "old":  # before batch norm counted its batches
        return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    if form == "original dense":
        return state | {"fc.weight": state["fc.weight"][:, :, None, None]}
    return state


@pytest.mark.parametrize("form", ["plain", "DataParallel", "compiled", "old", "original dense"])
def test_dense_weights_start_the_backbone_and_one_line_says_what_was_left_out(form, tmp_path):
    state = dense_state(form)
    torch.save(state, tmp_path / "dense.pth")
    network = Network("resnet18", 12, 5, use_blurpool=True)
    said = load_weights(network, str(tmp_path / "dense.pth"), "resnet18")
    assert "its dense classifier left out (fc.weight, fc.bias)" in said and "\n" not in said
    values = state.get("state_dict", state.get("model", state))
    wanted = next(value for name, value in values.items() if name.endswith("layer3.0.conv1.weight"))
    assert torch.equal(network.backbone.layer3[0].conv1.weight, wanted)


def wrapped(state, *wrappers):
    for wrapper in wrappers:
        if wrapper == "average":
            state = {"n_averaged": torch.tensor(7)} | {f"module.{name}": v for name, v in state.items()}
        elif wrapper.endswith("."):
            state = {f"{wrapper}{name}": value for name, value in state.items()}
        else:
            state = {"epoch": 3, wrapper: state, "optimizer": {"state": {}, "param_groups": []}}
    return state


@pytest.mark.parametrize(
    "wrappers",
    [
        ("module.", "_orig_mod."),
        ("_orig_mod.", "module."),
        ("module.", "module."),
        ("model.", "state_dict"),  # Lightning
        ("_orig_mod.", "model.", "state_dict"),
        ("average",),
        ("module.", "average", "model_ema"),
        ("average", "module.", "_orig_mod.", "state_dict", "model"),
        ("module.", "state_dict_ema"),  # timm
        ("model_state_dict", "network"),
        ("_fsdp_wrapped_module.", "model.", "state_dict"),
        ("module.", "_orig_mod.", "model.", "average", "ema", "state_dict", "model", "network"),
    ],
)
@pytest.mark.parametrize("form", ["dense", "original", "ours"])
def test_wrappers_of_any_order_and_depth_are_taken_off(wrappers, form, tmp_path):
    network = trained_network("resnet18", 9, 4, width=8)
    if form == "ours":
        state = network.state_dict()
    elif form == "original":
        state = checkpoints.to_original(network, with_codebook=True)
    else:
        state = checkpoints.to_backbone(network, with_classifier=True)
    torch.save(wrapped(state, *wrappers), tmp_path / "weights.pth")
    other = Network("resnet18", 9, 4, width=8)
    load_weights(other, str(tmp_path / "weights.pth"), "resnet18")
    for name, value in network.state_dict().items():
        if name != "codebook" and (form != "dense" or name.startswith("backbone.")):
            assert torch.equal(other.state_dict()[name], value), name


def test_parts_of_a_compiled_model_and_weights_beside_their_average(tmp_path):
    state = torchvision.models.resnet18(num_classes=5).state_dict()
    parts = {name.replace("layer2.", "layer2._orig_mod."): value for name, value in state.items()}
    average = wrapped({name: torch.full_like(value, 9) for name, value in state.items()}, "average")
    torch.save({"model_ema": average, "model": parts}, tmp_path / "weights.pth")
    network = Network("resnet18", 12, 5)
    load_weights(network, str(tmp_path / "weights.pth"), "resnet18")
    assert torch.equal(network.backbone.layer2[0].conv1.weight, state["layer2.0.conv1.weight"])


def test_a_backbone_whose_own_names_begin_like_a_wrapper(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "_registered", dict(backbones._registered))

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 6), nn.Linear(6, 2))

    backbones.register("outer", classifier="model.2")(Outer)
    state = Outer().state_dict()
    for content in (state, wrapped(state, "module."), wrapped(state, "model.", "state_dict")):
        torch.save(content, tmp_path / "weights.pth")
        network = Network("outer", 5, 3)
        said = load_weights(network, str(tmp_path / "weights.pth"), "outer")
        assert torch.equal(network.backbone.model[1].weight, state["model.1.weight"])
        assert "classifier left out (model.2.weight, model.2.bias)" in said


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: v.index_put((torch.tensor(0),), torch.tensor(float("nan"))), "NaN or infinite values"),
        (lambda v: v * float("inf"), "NaN or infinite values"),
        (lambda v: v.double() + 1e39, "NaN or infinite values"),  # above float32's largest
        (lambda v: (v * 100).to(torch.int8), r"other than floating-point numbers: {name} \(int8\)"),
        (lambda v: v.to(torch.complex64), r"{name} \(complex64\)"),
        (lambda v: v.to_sparse(), "{name} is a tensor of layout sparse_coo"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize("name", ["backbone.bn1.running_var", "backbone.conv1.weight", "projection.weight"])
def test_values_that_are_no_weights_are_refused_by_name(change, message, name, tmp_path):
    network = trained_network("resnet18", 9, 4, width=8)
    state = dict(network.state_dict())
    state[name] = change(state[name])
    torch.save(state, tmp_path / "weights.pth")
    message = message.format(name=re.escape(name))
    with pytest.raises(UserError, match=f"weights.pth.*{message}") as refused:
        load_weights(Network("resnet18", 9, 4, width=8), str(tmp_path / "weights.pth"), "resnet18")
    assert name in str(refused.value) and "conv2" not in str(refused.value)
    original_state = checkpoints.to_original(trained_network("resnet18", 9, 4), with_codebook=True)
    theirs = {"projection.weight": "module.fc_lr.weight"}.get(name, name.replace("backbone.", "module."))
    original_state[theirs] = change(original_state[theirs])
    torch.save(original_state, tmp_path / "model_best.pth")
    with pytest.raises(UserError, match="model_best.pth"):
        llc.load(tmp_path / "model_best.pth")


def test_half_precision_weights_are_taken(tmp_path):
    network = trained_network("resnet18", 9, 4, width=8)
    halves = {name: v.bfloat16() if v.is_floating_point() else v for name, v in network.state_dict().items()}
    torch.save(halves, tmp_path / "weights.pth")
    other = Network("resnet18", 9, 4, width=8)
    load_weights(other, str(tmp_path / "weights.pth"), "resnet18")
    assert torch.equal(other.projection.weight, halves["projection.weight"].float())


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "an empty file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n",
            "a Git LFS pointer.*git lfs",
        ),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html>", "an HTML or XML page"),
        (b"<html><body>Sign in", "an HTML or XML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an HTML or XML page"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "codebook.npy"])
def test_what_lies_in_place_of_a_file_is_called_what_it_is(content, message, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: {message}"):
        if name == "codebook.npy":
            load_codebook(path)
        else:
            llc.load(path)
    with pytest.raises(UserError, match=message if name != "codebook.npy" else name):
        load_weights(Network("resnet18", 9, 4, width=8), str(path), "resnet18")


def test_weights_that_do_not_fit_are_listed(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    state["bn1.weight"], state["layer1.5.conv1.weight"] = torch.ones(7), torch.ones(2)
    del state["layer2.0.bn1.bias"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError) as error:
        load_weights(Network("resnet18", 12, 5), str(tmp_path / "other.pth"), "resnet18")
    assert (
        "1 keys missing: layer2.0.bn1.bias; 1 keys unknown: layer1.5.conv1.weight; "
        "1 keys of another shape: bn1.weight ([7] in the file, [64] here)" in str(error.value)
    )
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="unknown: layer1.2.conv1.weight.*, and [0-9]+ more"):
        load_weights(Network("resnet18", 12, 5), str(tmp_path / "other.pth"), "resnet18")
    for content in (b"not a checkpoint", b"PK\3\4", b""):
        (tmp_path / "broken.pth").write_bytes(content)
        with pytest.raises(UserError, match="broken.pth"):
            load_weights(Network("resnet18", 12, 5), str(tmp_path / "broken.pth"), "resnet18")


@pytest.mark.parametrize("arch", ["resnet34", "resnext50_32x4d", "wide_resnet50_2"])
def test_the_architecture_is_found_from_the_shapes(arch):
    state = checkpoints.from_original(
        {
            k.removeprefix("module."): v
            for k, v in checkpoints.to_original(Network(arch, 9, 3), with_codebook=True).items()
        },
        "file",
    )
    assert checkpoints.options_of(state, "file") == {
        "arch": arch,
        "num_bits": 9,
        "num_classes": 3,
        "width": 64,
    }
    del state["backbone.layer1.0.conv2.weight"]
    with pytest.raises(
        UserError,
        match=f"the nearest, {arch}, has other keys: 1 keys missing: backbone.layer1.0.conv2.weight",
    ):
        checkpoints.options_of(state, "file")


@torch.no_grad()
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_backbone_for_torchvision_gives_the_class_logits(suffix, tmp_path):
    network = trained_network("resnet50", 20, 7, logit_scale=0.25)
    llc.Encoder(network, ANY).save(tmp_path / "encoder.safetensors")
    out = tmp_path / f"backbone.{suffix}"
    images = original.pictures(5, seed=8)
    read = load_file if suffix == "safetensors" else lambda path: torch.load(path, weights_only=True)
    dense = torchvision.models.resnet50(num_classes=7).eval()

    export.main([str(tmp_path / "encoder.safetensors"), "--to=backbone", "--with_classifier", f"--out={out}"])
    dense.load_state_dict(read(out), strict=True)
    assert agree(dense(original.normalised(images)), network.class_logits(network(images)))

    export.main([str(tmp_path / "encoder.safetensors"), "--to=backbone", f"--out={out}"])
    dense.fc = nn.Identity()
    dense.load_state_dict(read(out), strict=True)
    assert agree(
        dense(original.normalised(images)), network.backbone((images.float() - network.mean) / network.std)
    )


@torch.no_grad()
def test_a_network_with_blurpool_is_refused_or_written_for_a_reader_that_has_it(tmp_path):
    network = trained_network("resnet18", 9, 4, use_blurpool=True)
    llc.Encoder(network, ANY).save(tmp_path / "blur.safetensors")
    words = [str(tmp_path / "blur.safetensors"), f"--out={tmp_path / 'out.pth'}"]
    for form in ("original", "backbone"):
        with pytest.raises(UserError, match="BlurPool.*--with_blurpool"):
            export.main([*words, f"--to={form}"])
    assert not (tmp_path / "out.pth").exists()
    export.main([*words, "--to=backbone", "--with_classifier", "--with_blurpool"])
    dense = torchvision.models.resnet18(num_classes=4)
    dense.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    images = original.pictures(3, seed=9)
    expected = network.class_logits(network(images))
    assert not agree(dense.eval()(original.normalised(images)), expected)
    apply_blurpool(dense)
    assert any(isinstance(m, BlurConv2d) for m in dense.modules()) and agree(
        dense(original.normalised(images)), expected
    )


def test_what_cannot_be_exported_is_said(finished_run, instance_model, tmp_path):
    model = str(instance_model[1])
    for words, message in [
        ([str(finished_run), "--to=backbone"], "resnet18 of width 8: torchvision has no such network"),
        ([str(finished_run), "--to=original", "--with_classifier"], "--with_classifier is for --to=backbone"),
        ([model, "--to=backbone"], "name one with --out="),
        ([model, "--to=backbone", "--with_classifier", f"--out={tmp_path / 'out.pth'}"], "holds no codebook"),
        ([model, "--to=backbone", f"--out={tmp_path / 'out.onnx'}"], "ends in .safetensors or .pth"),
    ]:
        with pytest.raises(UserError, match=message):
            export.main(words)


# ------------------------------------------------------------------------------------------------ evaluation


def centre_projection(model, images):
    """Takes out of the projection what all images have in common, so that each bit is 1 for some of them."""
    features = []
    hook = model.fc_lr.register_forward_hook(
        lambda module, inputs, output: features.append(inputs[0].flatten(1))
    )
    model(images)
    hook.remove()
    mean, weight = features[0].mean(0), model.fc_lr.weight.data[:, :, 0, 0]
    weight -= (weight @ mean)[:, None] * mean / mean.dot(mean)


@torch.no_grad()
@pytest.mark.parametrize("data", ["beton", "folder"])
def test_the_originals_models_are_evaluated_with_its_own_preprocessing(data, image_tree, tmp_path, capsys):
    """Compared with the original's way: torchvision's transforms, its network, the largest logit.

    The images are files, or those of a beton.
    """
    root = image_tree / "val"
    beton = tmp_path / "val.beton"
    if data == "beton":
        write_beton(
            WriterConfig(write_path=str(beton), data_dir=str(image_tree), split="val", num_workers=1),
            show_progress=False,
        )
        images = BetonImages.of(open_shards(beton))
        opened = [
            image if isinstance(image, Image.Image) else Image.open(io.BytesIO(image))
            for image in map(images.image, range(66))
        ]
    else:
        opened = [
            Image.open(path) for label in range(6) for path in sorted((root / f"class_{label}").iterdir())
        ]
    prepare = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()]
    )
    pixels = torch.stack([prepare(image.convert("RGB")) for image in opened])
    labels = torch.arange(6).repeat_interleave(11)

    model, z_model = (
        original.random_values(original.resnet18(10, 6, width=8), seed=3),
        original.resnet18(10, None, width=8).eval(),
    )
    centre_projection(model, original.normalised(pixels))
    z_model.load_state_dict(
        {name: value for name, value in model.state_dict().items() if name != "fc.weight"}
    )
    z = z_model(original.normalised(pixels))
    codebook = z[5::11]  # an image of each class
    assert len(torch.unique(codebook > 0, dim=0)) == 6
    model.fc.weight.data = codebook[:, :, None, None].clone()
    path, codebook_path = original.save_files(model, tmp_path / "class")
    instance_path, _ = original.save_files(z_model, tmp_path / "instance")
    logits = model(original.normalised(pixels))
    distances = ((z > 0)[:, None] != (codebook > 0)[None]).sum(2)
    expected = {
        "class codes": (logits.argmax(1) == labels).double().mean(),
        "MHD": (distances.argmin(1) == labels).double().mean(),
        "ED": ((distances.argmin(1) == labels) & (distances.min(1).values == 0)).double().mean(),
    }
    assert logits.argmax(1).unique().numel() > 2 and all(0 < value < 1 for value in expected.values())

    for words in (
        [f"--original={path}"],
        ["--original", str(instance_path), "--codebook", str(codebook_path)],
    ):
        evaluate.main(
            [
                *words,
                f"--data.val_dataset={beton if data == 'beton' else root}",
                f"--predictions={tmp_path / 'predictions.npz'}",
            ]
        )
        said = capsys.readouterr().out
        found = dict(re.findall(r"(class codes|MHD|ED) +top-1 +([\d.]+) %", said))
        assert found == {name: f"{100 * value:.2f}" for name, value in expected.items()}
        assert re.findall(r"published ([\d.]+) %", said) == ["75.5", "74.5", "68.9"]
        predictions = np.load(tmp_path / "predictions.npz")
        assert (predictions["top_class"][:, 0] == logits.argmax(1).numpy()).all()
        assert (predictions["codes"] == np.packbits(z.numpy() > 0, axis=1)).all()
    with pytest.raises(UserError, match="--codebook=FILE.npy"):
        evaluate.main([f"--original={instance_path}", f"--data.val_dataset={root}"])
    with pytest.raises(UserError, match="has 6 classes, .* has 5"):
        np.save(tmp_path / "five.npy", codebook[:5])
        evaluate.main(
            [
                f"--original={instance_path}",
                f"--codebook={tmp_path / 'five.npy'}",
                f"--data.val_dataset={root}",
            ]
        )


@torch.no_grad()
def test_batch_norm_on_z_goes_into_a_dense_classifier_and_not_into_the_originals_form(tmp_path):
    torch.manual_seed(0)
    network = Network("resnet18", 10, 5, logit_scale="learnable", normalize="batchnorm")
    torch.nn.init.normal_(network.codebook)
    images = original.pictures(16, seed=8)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    network.train()(images)
    network.eval()
    encoder = llc.Encoder(network, Preprocessing(64, 1.0, "area", IMAGENET_MEAN, IMAGENET_STD), stage="joint")
    encoder.save(tmp_path / "encoder.safetensors")
    again = llc.load(tmp_path / "encoder.safetensors")
    assert again.stage == "joint" and torch.equal(again.network(images), network(images))
    export.main(
        [
            str(tmp_path / "encoder.safetensors"),
            "--to=backbone",
            "--with_classifier",
            f"--out={tmp_path / 'dense.pth'}",
        ]
    )
    dense = torchvision.models.resnet18(num_classes=5).eval()
    dense.load_state_dict(torch.load(tmp_path / "dense.pth", weights_only=True))
    assert agree(dense(original.normalised(images)), network.class_logits(network(images)))
    with pytest.raises(UserError, match="codes.normalize = batchnorm: the original's projection has no bias"):
        export.main(
            [str(tmp_path / "encoder.safetensors"), "--to=original", f"--out={tmp_path / 'original'}"]
        )
    assert not (tmp_path / "original").exists()
