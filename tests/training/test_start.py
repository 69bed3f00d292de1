"""What a run's network starts from: a dense classifier's backbone, codebook and projection."""

import json

import pytest
import torch
import torchvision
from torch import nn

from llc.checkpoints import load_backbone, load_weights
from llc.codebook import health
from llc.codes import binarize
from llc.distributed import Processes
from llc.errors import UserError
from llc.itq import itq_codebook, projection_onto
from llc.network import Network
from llc.training import config as training_config
from llc.training.build import check_sizes
from llc.training.start import Start, after_dense, build_network, start

NAMES = ("ant", "bee", "cat", "dog", "elk")
NEEDED = (
    "--data.train_dataset=train.beton",
    "--data.val_dataset=val.beton",
    "--model.arch=resnet18",
    "--codes.num_bits=6",
    "--instance.epochs=1",
    "--instance.lr=0.1",
    "--training.stages=instance",
)
DENSE = ("--dense.epochs=1", "--dense.lr=1")


def read(*words):
    return training_config.read([*NEEDED, *words], description="")[0]


def network_of(config):
    return Network(**config.network_options(len(NAMES), "instance"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A whole model of torchvision with 5 classes, and the file of its state."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).eval()
    nn.init.normal_(model.fc.bias)
    path = tmp_path_factory.mktemp("dense") / "model.pth"
    torch.save(model.state_dict(), path)
    return model, path


def pictures(count=8):
    return torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()


@torch.no_grad()
def test_a_dense_model_gives_backbone_codebook_projection_and_teacher(dense, capsys):
    model, path = dense
    config = read("--codes.init_codebook=itq", f"--model.weights={path}", "--codes.logit_scale=0.5")
    network = network_of(config).eval()
    found = start(config, network, NAMES, Processes())
    images = pictures()
    expected = model((images.float() - network.mean) / network.std)
    weight, bias = found.classifier
    assert torch.allclose(network.features(images) @ weight.T + bias, expected, atol=1e-4)
    assert torch.equal(found.codebook, itq_codebook(model.fc.weight, 6, seed=0))
    assert torch.equal(network.codebook, found.codebook)
    # class logits with the logit scale in them: 6 bits can hold all of 5 classes' logits but what they share
    rows = model.fc.weight - model.fc.weight.mean(0)
    wanted = 0.5 * binarize(found.codebook) @ network.projection.weight
    nearest = binarize(found.codebook) @ projection_onto(found.codebook, model.fc.weight)
    assert torch.allclose(wanted, nearest, atol=1e-5) and (nearest - rows).norm() < 0.9 * rows.norm()
    assert f"backbone and codebook from the dense classifier of {path}" in capsys.readouterr().out


@torch.no_grad()
def test_with_a_hidden_layer_the_projection_stays_random(dense):
    config = read("--codes.init_codebook=itq", f"--model.weights={dense[1]}", "--codes.hidden=12")
    network = network_of(config)
    before = network.projection.weight.clone()
    assert start(config, network, NAMES, Processes()).codebook.shape == (5, 6)
    assert torch.equal(network.projection.weight, before) and before.shape == (6, 12)


def test_a_run_that_resumes_needs_the_weights_no_longer(tmp_path):
    config = read("--codes.init_codebook=itq", f"--model.weights={tmp_path / 'gone.pth'}")
    found = start(config, network_of(config), NAMES, Processes(), resumes=True)
    assert found.codebook is None and [tuple(part.shape) for part in found.classifier] == [(5, 512), (5,)]


@torch.no_grad()
@pytest.mark.parametrize("normalize", ["none", "batchnorm"])
def test_a_network_of_ours_has_a_classifier_too(normalize, tmp_path):
    torch.manual_seed(2)
    network = Network("resnet18", 9, 5, width=8, normalize=normalize).eval()
    nn.init.normal_(network.codebook)
    if normalize == "batchnorm":
        network.normalization.running_mean.normal_()
        network.normalization.running_var.uniform_(0.5, 2)
    torch.save({"network": network.state_dict()}, tmp_path / "codebook.pth")
    other = Network("resnet18", 4, 5, width=8).eval()  # of another number of bits
    weight, bias = load_backbone(other, str(tmp_path / "codebook.pth"), "resnet18")
    images = pictures()
    logits = other.features(images) @ weight.T + bias
    assert torch.allclose(logits, network.class_logits(network(images)), atol=1e-4)


def test_what_cannot_make_a_codebook_is_refused(dense, tmp_path):
    state = dense[0].state_dict()

    def refused(state, *words, names=NAMES):
        torch.save(state, tmp_path / "weights.pth")
        config = read("--codes.init_codebook=itq", f"--model.weights={tmp_path / 'weights.pth'}", *words)
        with pytest.raises(UserError) as error:
            start(config, network_of(config), names, Processes())
        return str(error.value)

    without = {name: value for name, value in state.items() if not name.startswith("fc.")}
    assert "fc.weight is missing; a classifier [classes, 512] is needed" in refused(without)
    assert "its classifier has 5 classes, but the data has 4" in refused(state, names=NAMES[:4])
    broken = state | {"fc.bias": torch.full((5,), torch.nan)}
    assert "classifier has NaN or infinite values" in refused(broken)
    assert "keys missing" in refused({name: value for name, value in state.items() if "layer1" not in name})
    hidden = Network("resnet18", 6, 5, hidden=8)
    assert "a layer before the projection (codes.hidden, codes.head)" in refused(hidden.state_dict())
    with pytest.raises(UserError, match="name a network that has one as model.weights, or train one first"):
        read("--training.stages=both", "--codebook.epochs=1", "--codebook.lr=1", "--codes.init_codebook=itq")


def test_a_run_of_other_classes_is_refused(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    network = Network("resnet18", 5, 5)
    torch.save({"network": network.state_dict()}, run / "checkpoints" / "codebook.pth")
    config = read("--codes.init_codebook=itq", f"--model.weights={run}")
    for names, fits in ((NAMES, True), (NAMES[::-1], False)):
        (run / "class_names.json").write_text(json.dumps(names))
        if fits:
            start(config, network_of(config), NAMES, Processes())
        else:
            with pytest.raises(UserError, match="other names than those of the data, or another order"):
                start(config, network_of(config), NAMES, Processes())


@torch.no_grad()
@pytest.mark.parametrize("hidden", [0, 8])
def test_after_a_dense_stage_its_classifier_gives_codebook_projection_and_teacher(hidden):
    config = read("--training.stages=dense,instance", *DENSE, f"--codes.hidden={hidden}")
    dense = build_network(config, 5, "dense").eval()
    assert start(config, dense, NAMES, Processes()) == Start(None, None)
    images = pictures()
    logits = dense.class_logits(dense(images))
    assert torch.allclose(logits.softmax(1), dense.projection(dense.features(images)).softmax(1), atol=1e-6)
    network, (weight, bias) = after_dense(config, dense, Processes())
    assert network.options == config.network_options(5, "instance") and not bias.any()
    features = network.eval().features(images)
    assert torch.allclose(features, dense.features(images), atol=1e-5)
    assert torch.allclose((features @ weight.T).softmax(1), (2 * logits).softmax(1), atol=1e-5)
    assert torch.equal(network.codebook, itq_codebook(weight, 6, seed=0))
    made = projection_onto(network.codebook, weight)
    assert hidden or torch.equal(network.projection.weight, made)


@torch.no_grad()
def test_a_classifier_gives_the_expected_class_code(dense, capsys):
    """From model.weights and after a dense stage; the head holds class codes that were moved apart."""
    words = (
        "--codes.head=expected",
        "--codes.temperature=0.1",
        "--codes.min_distance=4",
        "--codes.num_bits=8",
    )
    _, path = dense
    config = read("--codes.init_codebook=itq", f"--model.weights={path}", *words)
    network = network_of(config).eval()
    found = start(config, network, NAMES, Processes())
    check_expected(network, *found.classifier)
    assert health(network.codebook).min_distance >= 4 > health(found.codebook).min_distance
    assert "codes.min_distance = 4: " in capsys.readouterr().out

    config = read("--training.stages=dense,instance", *DENSE, *words)
    dense_network = build_network(config, 5, "dense")
    start(config, dense_network, NAMES, Processes())
    network, classifier = after_dense(config, dense_network, Processes())
    check_expected(network.eval(), *classifier)


def check_expected(network, weight, bias):
    images = pictures()
    probabilities = ((network.features(images) @ weight.T + bias) / 0.1).softmax(1)
    assert torch.allclose(network(images), 4 * probabilities @ binarize(network.codebook), atol=1e-3)


def test_codes_of_no_training_need_a_classifier():
    weights = ("--codes.init_codebook=itq", "--model.weights=dense.pth")
    config = read("--training.stages=dense,instance", *DENSE, "--instance.epochs=0")
    assert config.stage("instance").epochs == 0
    assert read(*weights, "--instance.epochs=0").stage("instance").epochs == 0
    for words, message in [
        (("--codes.init_codebook=run", "--model.weights=run", "--instance.epochs=0"), "instance.epochs = 0"),
        ((*weights, "--instance.epochs=0", "--codes.hidden=8"), "without codes.hidden"),
        ((*weights, "--codes.head=expected", "--codes.hidden=8"), "no room for codes.hidden"),
        (
            ("--training.stages=codebook", "--codebook.epochs=1", "--codebook.lr=1", "--codes.head=expected"),
            "codes.head = expected is made from a dense classifier",
        ),
        (("--dense.epochs=0", "--training.stages=dense,instance", "--dense.lr=1"), "dense.epochs"),
    ]:
        with pytest.raises(UserError, match=message):
            read(*words)


def test_a_dense_stage_must_be_the_first_and_makes_the_codebook():
    with pytest.raises(UserError, match="the dense stage must be the first one"):
        read("--training.stages=instance,dense", *DENSE)
    with pytest.raises(UserError, match="must be itq or empty; it is codebook.npy"):
        read("--training.stages=dense,instance", *DENSE, "--codes.init_codebook=codebook.npy")
    assert read("--training.stages=dense,instance", *DENSE, "--codes.init_codebook=itq").stages[0] == "dense"


@torch.no_grad()
def test_a_dense_stage_starts_from_one_of_other_classes(tmp_path, capsys):
    config = read("--training.stages=dense,instance", *DENSE)
    other = build_network(config, 7, "dense")
    for value in other.backbone.state_dict().values():
        value.add_(1)
    torch.save({"network": other.state_dict()}, tmp_path / "dense.pth")
    config = read("--training.stages=dense,instance", *DENSE, f"--model.weights={tmp_path / 'dense.pth'}")
    network = build_network(config, 5, "dense")
    before = network.projection.weight.clone()
    start(config, network, NAMES, Processes())
    assert "its projection left out (7 outputs)" in capsys.readouterr().out
    assert torch.equal(network.projection.weight, before)
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, other.backbone.state_dict()[name])


def test_one_class_cannot_be_trained():
    config = read("--training.stages=dense,instance", *DENSE)
    with pytest.raises(UserError, match="has one class, so there is nothing to tell apart"):
        check_sizes(config, 1, 1)
    check_sizes(config, 2, 1)


@torch.no_grad()
def test_of_a_run_with_a_dense_stage_the_classifier_is_that_of_this_stage(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    config = read("--training.stages=dense,instance", *DENSE)
    dense = build_network(config, 5, "dense")
    torch.save({"network": dense.state_dict()}, run / "checkpoints" / "dense.pth")
    codes = Network("resnet18", 6, 5)
    torch.save({"network": codes.state_dict()}, run / "checkpoints" / "instance.pth")
    other = Network("resnet18", 6, 5)
    weight, _ = load_backbone(other, str(run), "resnet18")
    assert torch.equal(weight, binarize(dense.codebook) @ dense.projection.weight)
    load_weights(other, str(run), "resnet18")
    assert torch.equal(other.projection.weight, codes.projection.weight)
