"""llc.export --to=onnx, --to=torch and --to=timm: what other programs load computes what the model does."""

import copy
import json
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import llc
from llc import checkpoints
from llc.data.preprocessing import Preprocessing
from llc.errors import UserError
from llc.evaluation import fitting
from llc.export import check, graph, onnx_model, torch_program
from llc.network import IMAGENET_MEAN, IMAGENET_STD, Network
from tests import original
from tests.waiting import seconds

CLASSES = ["ant", "bee", "cat", "dog"]
ALL = "--outputs=codes,z,class,mhd,posterior"


def made(arch="resnet18", num_bits=12, *, flip=True, **options):
    """An encoder of random weights whose statistics are those of pictures, with a fitted posterior."""
    torch.manual_seed(num_bits)
    if arch == "resnet18":
        options = {"width": 8} | options
    network = Network(arch, num_bits, len(CLASSES), **options)
    nn.init.normal_(network.codebook)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(original.pictures(16, seed=2))
    preprocessing = Preprocessing(32, 0.9, "area", IMAGENET_MEAN, IMAGENET_STD)
    encoder = llc.Encoder(network, preprocessing, CLASSES, flip=flip)
    rng = np.random.default_rng(num_bits)
    values = rng.normal(size=(300, num_bits)) + 2 * encoder.codebook.numpy()[np.arange(300) % 4]
    encoder.fitted = fitting.fit(network, np.packbits(values > 0, axis=1), np.arange(300) % 4, source="noise")
    return encoder.eval()


def pictures(count, size=32):
    """Images uint8 whose codes differ."""
    return original.pictures(count, seed=3, size=size)


@torch.no_grad()
def expected(encoder, images):
    """What the outputs should be, from z of the network, by the shortest way."""
    z = encoder.network(images)
    if encoder.flip:
        z = (z + encoder.network(images.flip(3))) / 2
    z, signs = z.numpy(), np.where(encoder.codebook.numpy() > 0, 1, -1)
    bits, num_bits = z > 0, z.shape[1]
    logits = float(encoder.network.logit_scale) * z @ signs.T
    distances = (num_bits - np.where(bits, 1, -1) @ signs.T) // 2
    labels, probabilities = encoder.learnt["posterior"].decode(np.packbits(bits, axis=1), 1)
    return {
        "codes": np.packbits(bits, axis=1),
        "z": z,
        "class_labels": logits.argmax(1),
        "class_logits": logits,
        "mhd_labels": distances.argmin(1),
        "mhd_distances": distances.min(1),
        "posterior_labels": labels[:, 0],
        "posterior_probabilities": probabilities[:, 0],
    }


def assert_expected(found, encoder, images):
    wanted = expected(encoder, images)
    assert len(np.unique(wanted["codes"], axis=0)) > min(len(images), 8) // 2
    for name, array in found.items():
        if array.dtype.kind == "f":  # sums in another order
            np.testing.assert_allclose(array, wanted[name], rtol=1e-3, atol=1e-4)
        else:
            np.testing.assert_array_equal(array, wanted[name])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(encoder, its file): all that a network can have besides a backbone."""
    encoder = made(hidden=24, normalize="batchnorm", use_blurpool=True)
    path = tmp_path_factory.mktemp("saved") / "encoder.safetensors"
    encoder.save(path)
    return encoder, path


# ------------------------------------------------------------------------------------------------- the graph


@pytest.mark.parametrize("num_bits", [1, 9, 16, 30])
def test_the_graph_gives_codes_and_classes_of_any_length(num_bits):
    """30 bits: the posterior decoder has no table."""
    encoder = made(num_bits=num_bits, flip=num_bits % 2 == 0, logit_scale="learnable")
    module = graph.Graph(encoder, tuple(graph.OUTPUTS))
    assert (module.table_bytes > 0) == (num_bits <= 24)
    images = pictures(1 if num_bits == 1 else 40)
    with torch.no_grad():
        outputs = module(images)
    dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in outputs]
    assert dtypes == ["uint8", "float32", "int64", "float32", "int64", "int32", "int64", "float32"]
    assert_expected(check.as_numpy(module.names, outputs), encoder, images)


def test_the_graph_of_expected_class_codes():
    encoder = made(num_bits=16, head="expected")
    with torch.no_grad():
        network, images = encoder.network, pictures(40)
        logits = network.features(images) @ (weight := torch.randn(len(CLASSES), network.num_features)).T
        network.expect(weight, -logits.mean(0), temperature=float(logits.std(0).mean()))
        module = graph.Graph(encoder, tuple(graph.OUTPUTS))
        assert_expected(check.as_numpy(module.names, module(images)), encoder, images)


def test_ties_go_to_the_lowest_class():
    encoder = made()
    with torch.no_grad():
        encoder.network.codebook[1:] = encoder.network.codebook[:1]
        labels, logits, nearest, _ = graph.Graph(encoder, ("class", "mhd"))(pictures(9))
    assert not labels.any() and not nearest.any() and logits.std() > 0


# ----------------------------------------------------------------------------------------------- the commands

LOAD = """
import json, sys
import numpy as np
import onnxruntime, timm, torch
from safetensors.torch import load_file

images = np.load("images.npy")
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
onnx = dict(zip([output.name for output in session.get_outputs()], session.run(None, {"images": images})))
one = session.run(["codes"], {"images": images[:1]})[0]
files = {"llc.json": ""}
program = torch.export.load("model.pt2", extra_files=files).module()
pt2 = {f"torch_{i}": tensor.numpy() for i, tensor in enumerate(program(torch.from_numpy(images)))}
about = session.get_modelmeta().custom_metadata_map["llc"], files["llc.json"]
model = timm.create_model("test_vit", num_classes=4, dynamic_img_size=True).eval()
model.load_state_dict(load_file("timm.safetensors"), strict=True)
with torch.no_grad():
    logits = model(torch.from_numpy(np.load("normalised.npy"))).numpy()
assert not [name for name in sys.modules if name.split(".")[0] == "llc"]
np.savez("found.npz", about=about, one=one, logits=logits, **onnx, **pt2)
"""


def test_each_form_loads_without_llc_and_computes_what_the_model_does(saved, image_tree, tmp_path, call_llc):
    encoder, path = saved
    words = ["-m", "llc.export", path, ALL, f"--check={image_tree / 'val'}"]
    for form, name in (("onnx", "model.onnx"), ("torch", "model.pt2")):
        said = call_llc(*words, f"--to={form}", f"--out={tmp_path / name}").stdout
        assert "on 66 images of" in said and "all bits of all codes are equal" in said
        assert "images uint8 [batch, 3, 32, 32]" in said and "codes uint8 [batch, 2]" in said
        assert "class_logits float32 [batch, 4]" in said and "mhd_labels int64 [batch]" in said
        assert form == "torch" or re.search(r"model\.onnx: opset \d+, [\d.]+ MB\n", said)
    transformer = made("timm:test_vit", flip=False)
    transformer.save(tmp_path / "vit.safetensors")
    words = ["-m", "llc.export", tmp_path / "vit.safetensors", "--to=timm", f"--check={image_tree / 'val'}"]
    said = call_llc(*words, f"--out={tmp_path / 'timm.safetensors'}").stdout
    assert "timm.create_model('test_vit', num_classes=4, dynamic_img_size=True)" in said
    assert f"mean={IMAGENET_MEAN} and std={IMAGENET_STD}" in said and "the same for 66 of them" in said

    images = pictures(5)
    np.save(tmp_path / "images.npy", images.numpy())
    np.save(tmp_path / "normalised.npy", original.normalised(images).numpy())
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD], cwd=tmp_path, capture_output=True, text=True, timeout=seconds(120)
    )
    assert done.returncode == 0, done.stderr
    found = dict(np.load(tmp_path / "found.npz"))
    assert_expected({name: found[name] for name in graph.names_of(graph.OUTPUTS)}, encoder, images)
    for i, name in enumerate(graph.names_of(graph.OUTPUTS)):
        np.testing.assert_allclose(found[f"torch_{i}"], found[name], rtol=1e-4, atol=1e-5)
    assert np.array_equal(found["one"], found["codes"][:1])
    np.testing.assert_allclose(
        found["logits"], expected(transformer, images)["class_logits"], rtol=1e-3, atol=1e-4
    )
    for text in found["about"].tolist():
        about = json.loads(text)
        assert about["class_names"] == CLASSES and about["num_bits"] == 12 and about["flip"] is True
        assert about["preprocessing"]["resolution"] == 32 and about["preprocessing"]["resize"] == "area"
        assert about["network"] == checkpoints.digest(encoder.network) and about["llc"] == llc.__version__
    assert b".py" not in (tmp_path / "model.onnx").read_bytes()  # no paths of sources


def test_int8_is_measured_beside_the_float_model(finished_run, betons, tmp_path, call_llc):
    run, out = finished_run, tmp_path / "small.onnx"
    words = ["-m", "llc.export", run, "--to=onnx", f"--out={out}", "--num_bits=9", "--outputs=codes,z"]
    said = call_llc(*words, "--quantize=int8", "--calibration_images=48").stdout
    assert f"checked with onnxruntime {onnxruntime.__version__}" in said
    assert f"calibrated with 48 images of {betons[0]}" in said

    encoder = llc.load(run, num_bits=9)
    labels, z, codes, values = [], [], {"float": [], "int8": []}, {"float": 0, "int8": 0}
    runners = {
        name: onnx_model.runner(onnx_model.session(str(path)))
        for name, path in (("float", out), ("int8", tmp_path / "small_int8.onnx"))
    }
    for images, label in check.take(encoder, str(betons[1]), check.Reading(), 0):
        labels += label.tolist()
        z.append(encoder(images).detach().numpy())
        for name, run_it in runners.items():
            answer = run_it(images)
            assert list(answer) == ["codes", "z"] and answer["codes"].dtype == np.uint8
            codes[name].append(answer["codes"])
            values[name] = max(values[name], np.abs(answer["z"] - z[-1]).max() / z[-1].std())
    bits = {name: np.unpackbits(np.concatenate(part), axis=1, count=9) for name, part in codes.items()}
    z, labels = np.concatenate(z), np.array(labels)
    assert np.array_equal(bits["float"], z > 0)
    differing = (bits["float"] != bits["int8"]).mean()
    assert differing < 0.1 and values["float"] < 1e-5 < 1e-3 < values["int8"]  # quantised, and near
    assert f"{differing:.2%} of the bits differ" in said
    signs = encoder.codebook.numpy() > 0
    for name, own in bits.items():
        mhd = (own[:, None] != signs).sum(2).argmin(1)
        row = re.search(rf"^  {name} +(\S+) +(\S+)$", said, re.MULTILINE)
        assert row[2] == f"{(mhd == labels).mean():.2%}"
        if name == "float":
            assert row[1] == f"{((z @ np.where(signs, 1, -1).T).argmax(1) == labels).mean():.2%}"
    operators = {node.op_type for node in onnx.load(tmp_path / "small_int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators


# ------------------------------------------------------------------------------------------------- the check


def test_a_bit_may_differ_only_where_z_is_within_rounding(saved, monkeypatch):
    encoder = copy.copy(saved[0])
    images = pictures(20)
    z = torch.from_numpy(expected(encoder, images)["z"]).clone()
    size = float(z.square().mean().sqrt())
    tiny = z.clone()
    tiny[3, 5], tiny[3, 7], tiny[8, 0] = (part * size for part in (1e-6, -9e-5, 1e-7))
    monkeypatch.setattr(type(encoder), "forward", lambda self, images: tiny)
    sample = check.Sample([(images, None)], 20, "pictures", 0)

    def answer(*places):
        """Codes in which the bits at these places are the other ones."""
        bits = (tiny > 0).numpy()
        for place in places:
            bits[place] ^= True
        return lambda images: {"codes": np.packbits(bits, axis=1)}

    said = check.compare(answer(), encoder, ["codes"], sample, "it")
    assert "all bits of all codes are equal" in said
    said = check.compare(answer((3, 5), (3, 7), (8, 0)), encoder, ["codes"], sample, "it")
    assert "3 of 240 bits differ, in 2 images, where |z| is at most" in said
    assert f"{9e-5 * size:.1e}" in said
    with pytest.raises(UserError, match="1 of 240 bits differ, in 1 images.*no file|no file.*1 of 240 bits"):
        check.compare(answer((0, 0)), encoder, ["codes"], sample, "it")
    padded = answer()(images)["codes"]
    padded[:, -1] |= 1  # 12 bits: the last 4 of 16 are padding
    with pytest.raises(UserError, match="padding bits"):
        check.compare(lambda images: {"codes": padded}, encoder, ["codes"], sample, "it")


@pytest.mark.parametrize(
    "name, change",
    [
        ("z", lambda array: array + 1e-2),
        ("z", lambda array: array * np.nan),
        ("class_logits", lambda array: array * 1.1),
        ("class_labels", lambda array: (array + 1) % 4),
        ("class_labels", lambda array: array + 4),
        ("class_labels", lambda array: array.astype(np.int32)),
        ("mhd_labels", lambda array: (array + 1) % 4),
        ("mhd_distances", lambda array: array + np.int32(1)),
        ("posterior_labels", lambda array: (array + 1) % 4),
        ("posterior_probabilities", lambda array: array - np.float32(1e-2)),
        ("posterior_probabilities", lambda array: array * np.float32("nan")),
    ],
)
def test_any_other_answer_that_is_wrong_is_an_error(saved, name, change):
    encoder, images = saved[0], pictures(6)
    module = graph.Graph(encoder, tuple(graph.OUTPUTS))
    sample = check.Sample([(images, None)], 6, "pictures", 0)

    def answers(images):
        return check.as_numpy(module.names, module(images))

    assert "posterior answers are equal" in check.compare(answers, encoder, graph.OUTPUTS, sample, "it")
    with pytest.raises(UserError, match=name.partition("_")[0]):
        check.compare(
            lambda images: answers(images) | {name: change(answers(images)[name])},
            encoder,
            graph.OUTPUTS,
            sample,
            "it",
        )


def test_a_program_that_computes_something_else_leaves_the_earlier_file(
    saved, image_tree, tmp_path, call_llc, monkeypatch
):
    out = tmp_path / "model.pt2"
    out.write_bytes(b"earlier")
    monkeypatch.setattr(torch_program, "Graph", _Wrong)
    words = ["-m", "llc.export", saved[1], "--to=torch", f"--out={out}", f"--check={image_tree / 'val'}"]
    done = call_llc(*words, "--check_images=4", check=False)
    assert done.returncode == 2 and "is not what this model computes, so no file is written" in done.stderr
    assert out.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [out]


def test_a_network_that_cannot_be_traced_is_named(saved, tmp_path, call_llc, monkeypatch):
    monkeypatch.setattr(torch_program, "Graph", _Branching)
    words = ["-m", "llc.export", saved[1], "--to=torch", "--check=none", f"--out={tmp_path / 'model.pt2'}"]
    done = call_llc(*words, check=False)
    assert done.returncode == 2 and "torch.export cannot trace resnet18" in done.stderr
    assert "not checked on images" in done.stdout and not any(tmp_path.iterdir())


class _Branching(graph.Graph):
    def forward(self, images):
        return super().forward(images if images.float().mean() > 3 else 255 - images)


class _Wrong(graph.Graph):
    def forward(self, images):
        return super().forward(255 - images)


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "words, message",
    [
        (["--to=onnx", "--out=no/such/folder/model.onnx"], "there is no folder"),
        (["--to=onnx", "--out=model.pt"], "expected a name that ends in .onnx"),
        (["--to=torch", "--out=model.onnx"], "expected a name that ends in .pt2"),
        (["--to=timm", "--out=model.onnx"], "ends in .safetensors or .pth"),
        (["--to=onnx", "--outputs=codes,classes"], "outputs = 'codes,classes': it takes some of codes, z"),
        (["--to=onnx", "--outputs="], "--outputs= is empty"),
        (["--to=onnx", "--outputs=z,codes,z"], "name each output once"),
        (["--to=torch", "--quantize=int8"], "--quantize is for --to=onnx, not for --to=torch"),
        (["--to=timm", "--outputs=z"], "--outputs is for --to=onnx, torch, not for --to=timm"),
        (["--to=encoder", "--check=none"], "--check is for"),
        (["--to=encoder", "--dataset=lmdb"], "--dataset is for"),
        (["--to=onnx", "--calibration=x"], "--calibration is for --quantize=int8"),
        (["--to=onnx", "--quantize=int8", "--check=none"], "name some.*--calibration=IMAGES"),
        (["--to=onnx", "--quantize=int8", "--calibration=no/such", "--check=none"], "no/such"),
        (["--to=encoder", "--out=model.pth"], "ends in .safetensors"),
        (["--to=torch", "--check=no/such"], "no/such"),
        (
            ["--to=onnx", "--num_bits=6", "--outputs=posterior"],
            "is for whole codes, not for the first 6 bits",
        ),
        (["--to=timm"], "BlurPool"),
        (["--to=timm", "--with_blurpool"], "resnet18 of width 8: timm .* has no such model"),
    ],
)
def test_what_cannot_be_exported_is_said(saved, tmp_path, call_llc, words, message):
    where = [] if any(word.startswith("--out=") for word in words) else [f"--out={tmp_path / 'x'}"]
    endings = {"onnx": ".onnx", "torch": ".pt2", "timm": ".pth", "encoder": ".safetensors"}
    where = [word + endings[words[0].partition("=")[2]] for word in where]
    done = call_llc("-m", "llc.export", saved[1], *words, *where, check=False)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("form, ending", [("onnx", "onnx"), ("torch", "pt2"), ("timm", "pth")])
def test_a_model_without_codes_or_without_a_codebook_is_refused(tmp_path, call_llc, form, ending):
    encoder = made(width=64) if form == "timm" else made()
    encoder.stage = "dense"
    encoder.save(tmp_path / "dense.safetensors")
    encoder.stage, encoder.fitted, encoder.named = "instance", None, False
    encoder.network.codebook = nn.Parameter(torch.empty(0, 12))
    encoder.network.options["num_classes"] = 0
    encoder.save(tmp_path / "codes.safetensors")
    words = [f"--to={form}", f"--out={tmp_path / 'model'}.{ending}"]
    outputs = [] if form == "timm" else ["--outputs=mhd"]
    for name, message in (
        ("dense", "a dense classifier, which has no codes"),
        ("codes", "holds no codebook"),
    ):
        path = tmp_path / f"{name}.safetensors"
        done = call_llc("-m", "llc.export", path, *words, *outputs, check=False)
        assert done.returncode == 2 and message in done.stderr, done.stderr


def test_a_missing_package_is_named(saved, tmp_path, call_llc, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = call_llc("-m", "llc.export", saved[1], "--to=onnx", f"--out={tmp_path / 'x.onnx'}", check=False)
    assert done.returncode == 2 and "--to=onnx needs onnxscript" in done.stderr
    assert "pip install 'llcodes[onnx]'" in done.stderr


def test_torchvisions_resnets_fit_timm_and_other_models_of_the_same_name_do_not(
    image_tree, tmp_path, call_llc
):
    encoder = made(width=64, normalize="batchnorm")
    encoder.save(tmp_path / "resnet.safetensors")
    words = ["-m", "llc.export", tmp_path / "resnet.safetensors", "--to=timm", "--check_images=8"]
    out = tmp_path / "timm.pth"
    said = call_llc(*words, f"--out={out}", f"--check={image_tree / 'val'}").stdout
    assert "timm.create_model('resnet18', num_classes=4)" in said and "the same for 8 of them" in said
    assert "mean over an image and its mirror image" in said
    assert torch.load(out, weights_only=True)["fc.bias"].abs().max() > 0  # the mean of batch norm on z

    made("efficientnet_b0").save(tmp_path / "efficientnet.safetensors")
    words[2] = tmp_path / "efficientnet.safetensors"
    done = call_llc(*words, f"--out={tmp_path / 'efficientnet.pth'}", check=False)
    assert done.returncode == 2 and "timm's efficientnet_b0 is not the efficientnet_b0 of" in done.stderr
    assert "conv_stem.weight is missing" in done.stderr
