"""Backbones by name: torchvision's, timm's, and those of a plugin, in training, checkpoints and exports."""

import re
import subprocess
import sys
import types

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

import llc
from llc import backbones, checkpoints
from llc.checkpoints import load_weights
from llc.data.preprocessing import Preprocessing
from llc.errors import UserError
from llc.export import __main__ as export
from llc.network import IMAGENET_MEAN, IMAGENET_STD, Network
from tests import original
from tests.conftest import ROOT

CLASSIFIERS = {
    "resnet18": ("fc", 512),
    "shufflenet_v2_x0_5": ("fc", 1024),
    "regnet_x_400mf": ("fc", 400),
    "mobilenet_v3_small": ("classifier.3", 1024),
    "convnext_tiny": ("classifier.2", 768),
    "efficientnet_b0": ("classifier.1", 1280),
    "densenet121": ("classifier", 1024),
    "alexnet": ("classifier.6", 4096),
    "maxvit_t": ("classifier.5", 512),
    "swin_t": ("head", 768),
    "vit_b_32": ("heads.head", 768),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_torchvision_model_keeps_everything_but_its_last_linear_layer(name):
    with torch.device("meta"):
        built = backbones.build(name)
        whole = torchvision.models.get_model(name).state_dict() if name != "regnet_x_400mf" else None
        features = built.module(torch.empty(2, 3, 224, 224))
    assert (built.classifier, built.num_features) == CLASSIFIERS[name]
    assert features.shape == (2, built.num_features)
    if whole is not None:
        left_out = set(whole) - set(built.module.state_dict())
        bias = {f"{built.classifier}.bias"} if built.has_bias else set()
        assert left_out == {f"{built.classifier}.weight"} | bias


def test_every_torchvision_model_works_or_is_refused_by_name():
    refused = {}
    for name in torchvision.models.list_models(torchvision.models):
        if name.startswith("regnet") and name != "regnet_x_400mf":
            continue  # they take memory and time even on the meta device
        with torch.device("meta"):
            try:
                backbones.build(name)
            except UserError as error:
                refused[name] = str(error)
    assert set(refused) == {"googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1"}
    assert "auxiliary classifiers" in refused["googlenet"] and "Linear" in refused["squeezenet1_0"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet51", "not a known backbone; did you mean resnet50?.*--plugin=FILE.py"),
        ("convnext_tinny", "did you mean convnext_tiny?"),
        ("timm:vit_tinny_patch16_224", "has no such model; did you mean timm:vit_tiny_patch16_224?"),
        ("timm:resnet18.no_such_tag", "timm:resnet18.a1_in1k"),
        ("timm:hf-hub:someone/model", "has no such model"),
        ("timm:local-dir:/tmp", "has no such model"),
        ("timm:deit_tiny_distilled_patch16_224", "one classifier, and has head, head_dist"),
        ("timm:resnetv2_50", "its head.fc is a Conv2d"),
    ],
)
def test_an_unusable_name_is_explained(name, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?").replace(r".*", ".*")):
        Network(name, 8, 3)


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm:test_vit needs timm, .*pip install 'llcodes\[timm\]'"):
        Network("timm:test_vit", 8, 3)


def test_only_basic_resnets_come_narrower():
    with pytest.raises(UserError, match="only resnet18 and resnet34 come narrower, model.arch is resnet50"):
        Network("resnet50", 8, 3, width=32)
    with pytest.raises(UserError, match="vit_b_16 is not a ResNet, and only resnet18 and resnet34"):
        Network("vit_b_16", 8, 3, width=32)


def test_blurpool_without_a_convolution_to_blur_is_an_error():
    with pytest.raises(UserError, match="use_blurpool: timm:test_vit has no strided convolution"):
        Network("timm:test_vit", 8, 3, use_blurpool=True)


# ------------------------------------------------------------------------------------------------ image sizes


def images(size, count=2):
    return torch.zeros(count, 3, size, size, dtype=torch.uint8)


def test_a_model_of_one_image_size_names_it_and_the_keys():
    with torch.device("meta"):
        network = Network("vit_b_32", 8, 3)
        assert network(images(224)).shape == (2, 8)
        for size in (192, 256):
            with pytest.raises(
                UserError,
                match=f"vit_b_32 takes images of 224 x 224 pixels, got {size} x {size}: set "
                "resolution.min_res, resolution.max_res and validation.resolution to 224",
            ):
                network(images(size))


def test_the_error_comes_out_of_a_compiled_network_too():
    network = Network("timm:test_vit", 8, 3).eval()
    network.compile(backend="eager", dynamic=False)
    assert network(images(96)).shape == (2, 8)
    with pytest.raises(UserError, match="sides are multiples of 16 pixels, got 40 x 40"):
        network(images(40))


def test_a_vit_of_timm_takes_any_multiple_of_its_patches():
    network = Network("timm:test_vit", 8, 3).eval()
    for size in (64, 160):
        assert network(images(size)).shape == (2, 8)
    with pytest.raises(UserError, match="timm:mixer_s16_224 takes images of 224 x 224 pixels"):
        with torch.device("meta"):
            Network("timm:mixer_s16_224", 8, 3)(images(192))


# ------------------------------------------------------------------------------------------------ weights


def small(name):
    """A network whose running statistics are those of pictures, so that its outputs are far from 0."""
    torch.manual_seed(1)
    network = Network(name, 10, 4)
    nn.init.normal_(network.codebook)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(original.pictures(16, seed=2))
    return network.eval()


def constructed(name, **arguments):
    """The whole model, made by its own library."""
    if name.startswith("timm:"):
        import timm

        return timm.create_model(name.removeprefix("timm:"), **arguments)
    return torchvision.models.get_model(name, **arguments)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "timm:test_vit", "timm:test_convnext"])
def test_an_export_is_the_whole_model_for_its_own_library(name, tmp_path, capsys):
    network = small(name)
    encoder = llc.Encoder(network, Preprocessing(64, 1.0, "area", IMAGENET_MEAN, IMAGENET_STD))
    encoder.save(tmp_path / "encoder.safetensors")
    out = tmp_path / "model.safetensors"
    words = [str(tmp_path / "encoder.safetensors"), "--to=backbone", f"--out={out}"]
    export.main([*words, "--with_classifier"])
    said = capsys.readouterr().out
    assert "num_classes=4)" in said and name.removeprefix("timm:") in said
    arguments = {"dynamic_img_size": True} if name == "timm:test_vit" else {}
    whole = constructed(name, num_classes=4, **arguments).eval()
    whole.load_state_dict(load_file(out), strict=True)
    pictures = original.pictures(5, seed=3)
    expected = network.class_logits(network(pictures))
    assert torch.allclose(whole(original.normalised(pictures)), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 1e-2

    export.main(words)
    prefix = network.classifier
    said = capsys.readouterr().out
    assert f"without {prefix}" in said
    assert set(whole.state_dict()) - set(load_file(out)) == {f"{prefix}.weight", f"{prefix}.bias"}

    again = llc.load(tmp_path / "encoder.safetensors")
    assert again.network.options == network.options and torch.equal(
        again.network(pictures), network(pictures)
    )
    with pytest.raises(UserError, match="builds ResNets only"):
        export.main([words[0], "--to=original", f"--out={tmp_path / 'original'}"])


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "timm:test_vit"])
def test_a_dense_state_starts_the_backbone_without_its_classifier(name, tmp_path):
    whole = constructed(name, num_classes=5)
    torch.save(whole.state_dict(), tmp_path / "dense.pth")
    network = Network(name, 10, 5)
    said = load_weights(network, str(tmp_path / "dense.pth"), name)
    prefix = network.classifier
    assert f"its dense classifier left out ({prefix}.weight, {prefix}.bias)" in said
    own = network.backbone.state_dict()
    assert all(torch.equal(own[key], value) for key, value in whole.state_dict().items() if key in own)


def test_a_classifier_without_bias_is_written_without_one():
    with torch.device("meta"):
        network = Network("maxvit_t", 10, 4)
        with_norm = Network("maxvit_t", 10, 4, normalize="batchnorm")
    assert not network.classifier_has_bias
    network.to_empty(device="cpu")
    state = checkpoints.to_backbone(network, with_classifier=True)
    assert "classifier.5.weight" in state and "classifier.5.bias" not in state
    with pytest.raises(UserError, match="the classifier of maxvit_t has no bias"):
        checkpoints.to_backbone(with_norm, with_classifier=True)


def test_published_weights_are_torchvisions_by_name_in_the_names_of_today(tmp_path, monkeypatch):
    """DenseNet's published files have older names of parameters, which torchvision translates."""
    model = torchvision.models.densenet121()
    old = {
        key.replace("norm1", "norm.1").replace("conv1", "conv.1"): value
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    weights = torchvision.models.get_model_weights("densenet121")
    file = tmp_path / "hub" / "checkpoints" / weights.IMAGENET1K_V1.url.split("/")[-1]
    file.parent.mkdir(parents=True)
    torch.save(old, file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    network = Network("densenet121", 10, 4)
    said = load_weights(network, "IMAGENET1K_V1", "densenet121")
    assert "backbone weights from IMAGENET1K_V1" in said and "classifier.weight" in said
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.backbone.state_dict().items())
    with pytest.raises(UserError, match=r"nor published weights of densenet121 \(IMAGENET1K_V1, "):
        load_weights(network, "IMAGENET1K_V9", "densenet121")


@pytest.fixture
def published(monkeypatch):
    """published(name): a model of timm with random values, which timm then takes for all published ones."""
    import timm

    def make(name, **arguments):
        torch.manual_seed(0)
        model = timm.create_model(name, **arguments).eval()
        monkeypatch.setattr(
            timm, "create_model", lambda full, **options: given.append((full, options)) or model
        )
        return model, given

    given = []
    return make


def test_published_weights_of_timm_go_by_their_tags(published):
    assert {"a1_in1k", "tv_in1k"} <= set(backbones.published_weights("timm:resnet18"))
    network = Network("timm:resnet18", 10, 4)
    model, asked = published("resnet18")
    said = load_weights(network, "tv_in1k", "timm:resnet18")
    assert "its dense classifier left out (fc.weight, fc.bias)" in said
    assert asked == [("resnet18.tv_in1k", {"pretrained": True})]
    assert torch.equal(network.backbone.conv1.weight, model.conv1.weight)


@torch.no_grad()
def test_published_weights_of_timm_take_images_as_llc_normalises_them(published):
    """timm:test_vit was trained on images with mean and standard deviation 0.5."""
    network = Network("timm:test_vit", 10, 4).eval()
    model, _ = published("test_vit")
    pictures = original.pictures(4, seed=3, size=160)
    expected = model.forward_head(model.forward_features((pictures / 255 - 0.5) / 0.5), pre_logits=True)
    load_weights(network, "r160_in1k", "timm:test_vit")
    found = network.features(pictures)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)  # another order of the same sums
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_published_weights_for_images_normalised_in_another_way_are_refused(published):
    network = Network("timm:test_resnet", 10, 4)
    published("test_resnet")  # its first convolution pads
    with pytest.raises(UserError, match=r"test_resnet.r160_in1k: .* mean \(0.5, 0.5, 0.5\).*other weights"):
        load_weights(network, "r160_in1k", "timm:test_resnet")


@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 4), None, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, bias=False)]
)
def test_a_first_layer_that_cannot_take_another_normalisation_is_refused_before_a_download(
    layer, monkeypatch
):
    import timm

    cfg = types.SimpleNamespace(first_conv=None if layer is None else "0", mean=(0.5,) * 3, std=(0.5,) * 3)
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda name: cfg)
    asked = []
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained: asked.append(pretrained) or nn.Sequential(*filter(None, [layer])),
    )
    with pytest.raises(UserError, match=r"one.tag: .* its first layer cannot be changed to fit"):
        backbones._timm_weights("one.tag")
    assert asked == [False]


# ------------------------------------------------------------------------------------------------ training


def test_a_vit_of_timm_goes_the_whole_way(betons, call_llc, tmp_path):
    words = [
        "--config=rn18_configs/llc_demo.yaml",
        "--model.arch=timm:test_vit",
        "--model.width=64",
        "--codes.num_bits=10",
        "--training.batch_size=48",
        "--validation.batch_size=33",
        "--codebook.epochs=1",
        "--codebook.lr_peak_epoch=0",
        "--instance.epochs=1",
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={betons[1]}",
        f"--logging.folder={tmp_path}",
        "--logging.name=run",
    ]
    done = call_llc("train_llc.py", *words, "--validation.resolution=40", check=False)
    assert done.returncode == 2 and "multiples of 16 pixels, got 40 x 40" in done.stderr

    call_llc("train_llc.py", *words)
    run, encoder = tmp_path / "run", tmp_path / "encoder.safetensors"
    said = call_llc("-m", "llc.evaluate", run).stdout
    for decoder in ("class codes", "MHD", "ED", "posterior"):
        assert re.search(rf"{decoder} +top-1 +[\d.]+ %", said), said
    call_llc("-m", "llc.export", run, "--to=encoder", f"--out={encoder}")
    call_llc("-m", "llc.export", run, "--to=backbone", f"--out={tmp_path / 'vit.safetensors'}")
    trained, again = llc.load(run), llc.load(encoder)
    pictures = original.pictures(6, seed=4)
    codes = trained.encode(pictures)
    assert torch.equal(codes, again.encode(pictures)) and len(codes.unique(dim=0)) > 1
    assert (
        trained.classify(pictures, decode="posterior", k=1).names
        == again.classify(pictures, decode="posterior", k=1).names
    )
    state = load_file(tmp_path / "vit.safetensors")
    assert torch.equal(state["patch_embed.proj.weight"], trained.network.backbone.patch_embed.proj.weight)
    constructed("timm:test_vit", num_classes=0, dynamic_img_size=True).load_state_dict(state, strict=True)


# ------------------------------------------------------------------------------------------------ plugins

PLUGIN = """
import torch
from torch import nn

from llc import backbones


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.fc = nn.Linear(8, 10)

    def forward(self, images):
        features = self.body(images)  # [B, 8, 1, 1], which a Linear would not take
        return features if isinstance(self.fc, nn.Identity) else self.fc(features.flatten(1))


def published():
    return {name: torch.full_like(value, 0.5) for name, value in Mine().state_dict().items()}


@backbones.register("mine", classifier="fc", weights={"HALVES": published})
def mine():
    return Mine()
"""


def test_a_plugin_trains_and_its_run_loads_where_the_plugin_is_imported(betons, run_llc, call_llc, tmp_path):
    plugin = tmp_path / "my_backbone.py"
    plugin.write_text(PLUGIN)
    words = [
        "--config=rn18_configs/llc_demo.yaml",
        "--model.arch=mine",
        "--model.width=64",
        "--codes.num_bits=10",
        "--training.batch_size=24",
        "--validation.batch_size=16",
        "--training.stages=codebook",
        "--codebook.epochs=1",
        "--codebook.lr_peak_epoch=0",
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={betons[1]}",
        f"--logging.folder={tmp_path}",
        "--logging.name=run",
    ]
    done = call_llc("train_llc.py", *words, check=False)
    assert done.returncode == 2 and "model.arch = mine: not a known backbone" in done.stderr
    assert "--plugin=FILE.py" in done.stderr

    done = run_llc("train_llc.py", f"--plugin={plugin}", *words, "--model.weights=HALVES")
    assert "backbone weights from HALVES, its dense classifier left out (fc.weight, fc.bias)" in done.stdout

    load = (
        f"import sys; sys.path.append({str(tmp_path)!r}); import my_backbone; "
        f"import llc, torch; encoder = llc.load({str(tmp_path / 'run')!r}); "
        "print(encoder(torch.zeros(2, 3, 32, 32).byte()).shape)"
    )
    done = subprocess.run([sys.executable, "-c", load], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "torch.Size([2, 10])" in done.stdout, done.stderr
    with pytest.raises(UserError, match="model.arch = mine: not a known backbone.*--plugin"):
        llc.load(tmp_path / "run")

    words = [tmp_path / "run", "--to=backbone", "--with_classifier"]
    assert (
        "the plugin's mine with num_classes=6"
        in run_llc("-m", "llc.export", f"--plugin={plugin}", *words).stdout
    )
    assert load_file(tmp_path / "run" / "backbone.safetensors")["fc.weight"].shape == (6, 8)


def test_names_of_plugins_are_unique_and_their_modules_are_checked():
    with pytest.raises(ValueError, match="'resnet50'.*taken"):
        backbones.register("resnet50", classifier="fc")
    backbones.register("test_no_module", classifier="fc")(lambda: 3)
    backbones.register("test_no_classifier", classifier="head")(torchvision.models.resnet18)
    backbones.register("test_sized", classifier="fc", image_size=64)(torchvision.models.resnet18)
    with pytest.raises(ValueError, match="'test_sized'"):
        backbones.register("test_sized", classifier="fc")
    with pytest.raises(UserError, match="test_no_module: its function returned 3"):
        backbones.build("test_no_module")
    with pytest.raises(UserError, match="test_no_classifier: .* its head is missing"):
        backbones.build("test_no_classifier")
    with pytest.raises(UserError, match="test_sized takes images of 64 x 64"):
        Network("test_sized", 8, 3)(images(32))
