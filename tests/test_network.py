"""BlurPool, any ResNet, the first bits of a network's codes."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from llc.codes import binarize, pack_bits, unpack_bits
from llc.errors import UserError
from llc.network import BlurConv2d, Network, apply_blurpool, running_statistics


@pytest.mark.parametrize("kernel, padding", [(1, 0), (3, 1)])
def test_blurpool_equals_blur_then_strided_convolution(kernel, padding):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(16, 8, kernel, stride=2, padding=padding, bias=False).double()
    x = torch.randn(2, 16, 13, 11, dtype=torch.float64)
    row = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    blurred = torch.stack(
        [F.conv2d(x[:, c : c + 1], torch.outer(row, row)[None, None], padding=1)[:, 0] for c in range(16)], 1
    )
    ours = BlurConv2d.of(conv).double()
    assert torch.allclose(ours(x), conv(blurred), atol=1e-12)
    assert not torch.allclose(ours(x), conv(x), atol=1e-2)


def test_blurpool_changes_no_names_and_leaves_the_stem():
    network = torchvision.models.resnet50()
    names = list(network.state_dict())
    apply_blurpool(network)
    assert list(network.state_dict()) == names and type(network.conv1) is torch.nn.Conv2d
    assert (
        sum(isinstance(m, BlurConv2d) for m in network.modules()) == 6
    )  # conv2 and downsample of three stages


@pytest.mark.parametrize("arch", ["resnet50", "resnext50_32x4d"])
def test_any_resnet_is_a_backbone(arch):
    z = Network(arch, 20, 3, use_blurpool=True).eval()(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert z.shape == (2, 20) and z.dtype == torch.float32


def test_batch_norm_on_z_is_of_the_batch_in_training_and_running_in_evaluation():
    torch.manual_seed(1)
    network = Network("resnet18", 12, 3, width=8, normalize="batchnorm")
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    z = network.train()(images)
    assert torch.allclose(z.mean(0), torch.zeros(12), atol=1e-5) and torch.allclose(
        z.var(0, unbiased=False), torch.ones(12), atol=0.02
    )
    names = set(network.state_dict()) - set(Network("resnet18", 12, 3, width=8).state_dict())
    assert names == {
        "normalization.running_mean",
        "normalization.running_var",
        "normalization.num_batches_tracked",
    }
    assert any(statistic is network.normalization.running_mean for statistic in running_statistics(network))
    assert not any(name.startswith("normalization") for name, _ in network.named_parameters())
    features = network.eval().projection(network.backbone((images.float() - network.mean) / network.std))
    norm = network.normalization
    assert torch.allclose(
        network(images), (features - norm.running_mean) / (norm.running_var + 1e-5).sqrt(), atol=1e-5
    )


@torch.no_grad()
def test_a_hidden_layer_is_linear_batch_norm_and_relu_before_the_projection():
    torch.manual_seed(2)
    network = Network("resnet18", 12, 3, width=8, hidden=5).eval()
    linear, norm = network.hidden[0], network.hidden[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    values = (network.features(images) @ linear.weight.T - norm.running_mean) / (
        norm.running_var + 1e-5
    ).sqrt()
    assert (values < 0).any() and linear.bias is None and network.projection.weight.shape == (12, 5)
    assert torch.allclose(network(images), values.clamp(min=0) @ network.projection.weight.T, atol=1e-5)
    without = Network("resnet18", 12, 3, width=8).state_dict()
    added = [name for name in network.state_dict() if name not in without]
    assert added and all(name.startswith("hidden.") for name in added)
    assert any(statistic is norm.running_mean for statistic in running_statistics(network))


@torch.no_grad()
def test_the_expected_class_code_is_the_mean_of_the_class_codes():
    torch.manual_seed(3)
    network = Network("resnet18", 12, 3, width=8, head="expected").eval()
    nn.init.normal_(network.codebook)
    weight, bias = torch.randn(3, network.num_features), torch.randn(3)
    network.expect(weight, bias, temperature=0.5)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    probabilities = ((network.features(images) @ weight.T + bias) / 0.5).softmax(1)
    codes = torch.where(network.codebook > 0, 1.0, -1.0)
    assert torch.allclose(network(images), 4 * probabilities @ codes, atol=1e-5)
    # a certain class gives its class code
    network.expect(weight, bias, temperature=1e-4)
    classes = (network.features(images) @ weight.T + bias).argmax(1)
    assert torch.equal(network(images).sign(), codes[classes])
    without = Network("resnet18", 12, 3, width=8).state_dict()
    added = {name for name in network.state_dict() if name not in without}
    assert added == {"hidden.0.weight", "hidden.0.bias"}
    for options in ({"head": "mean"}, {"head": "expected", "hidden": 4}):
        with pytest.raises(UserError, match="it takes linear, or expected with codes.hidden = 0"):
            Network("resnet18", 12, 3, width=8, **options)


def test_options_build_the_same_network():
    network = Network("resnet18", 12, 3, width=8, logit_scale="learnable", normalize="batchnorm", hidden=4)
    again = Network(**network.options)
    assert again.options == network.options and list(again.state_dict()) == list(network.state_dict())
    with pytest.raises(UserError, match="normalize = 'layernorm'"):
        Network("resnet18", 12, 3, width=8, normalize="layernorm")


# ------------------------------------------------------------------------------------------------ first bits

FORMS = {
    "plain": {"logit_scale": 0.5},
    "batch norm on z": {"normalize": "batchnorm"},
    "hidden layer": {"hidden": 32},
    "expected": {"head": "expected"},
    "learnable scale": {"logit_scale": "learnable", "normalize": "batchnorm", "hidden": 32},
}
IMAGES = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def network_of(**options):
    """A network of 12 bits whose parameters and statistics are no longer those that it was built with."""
    torch.manual_seed(4)
    network = Network("resnet18", 12, 3, width=8, **options).train()
    network.codebook.data.normal_()
    if options.get("logit_scale") == "learnable":
        network.log_logit_scale.data.fill_(0.7)
    network.mean += 3
    network.std *= 1.1
    norms = [
        module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    for norm in norms:
        norm.momentum = 1.0  # so that its statistics are those of the images
    with torch.no_grad():
        network(IMAGES)
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("num_bits", [1, 5, 8])
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_first_bits_are_those_of_the_whole_codes(options, num_bits):
    whole = network_of(**options)
    first = whole.first_bits(num_bits)
    z, expected = first(IMAGES), whole(IMAGES)
    # sums of float32 may come in another order; no value is so near 0 that this could turn a bit
    assert torch.allclose(z, expected[:, :num_bits], rtol=1e-5, atol=1e-5) and expected.abs().min() > 1e-4
    bits = unpack_bits(pack_bits(expected), 12)
    assert torch.equal(unpack_bits(pack_bits(z), num_bits), bits[:, :num_bits])
    assert len(torch.unique(bits, dim=0)) > 3
    assert torch.equal(first.codebook, whole.codebook[:, :num_bits])
    scale = float(whole.logit_scale) * (12 / num_bits) ** 0.5
    logits = scale * z @ binarize(whole.codebook[:, :num_bits]).T
    assert torch.allclose(first.class_logits(z), logits, rtol=1e-5)
    assert torch.allclose(whole.class_logits(expected, num_bits), logits, rtol=1e-4, atol=1e-5)
    again = Network(**first.options).eval()
    again.load_state_dict(first.state_dict())
    again.mean.copy_(whole.mean)
    again.std.copy_(whole.std)
    assert torch.equal(again.class_logits(again(IMAGES)), first.class_logits(z))
    assert again.projection.out_features == first.projection.out_features == num_bits


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_the_first_bits_are_a_copy_in_the_same_modes(options):
    whole = network_of(**options).train()
    whole.backbone.layer2.eval()
    whole.codebook.requires_grad_(False)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    random = torch.get_rng_state()
    first = whole.first_bits(8)
    assert torch.equal(torch.get_rng_state(), random)
    modes = {name: module.training for name, module in whole.named_modules()}
    assert {name: module.training for name, module in first.named_modules()} == modes
    assert {name: value.requires_grad for name, value in first.named_parameters()} == {
        name: value.requires_grad for name, value in whole.named_parameters()
    }
    # no part keeps the memory of the whole
    assert all(v.untyped_storage().nbytes() == v.nbytes for v in first.state_dict().values())
    # training the copy changes nothing of the whole network
    optimizer = torch.optim.SGD([value for value in first.parameters() if value.requires_grad], lr=0.1)
    torch.nn.functional.cross_entropy(first.class_logits(first(IMAGES)), torch.arange(9) % 3).backward()
    optimizer.step()
    first.mean += 1
    first.std += 1
    assert not torch.equal(first.projection.weight, before["projection.weight"][:8])
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    untouched = network_of(**options)
    assert torch.equal(whole.mean, untouched.mean) and torch.equal(whole.std, untouched.std)
    assert whole.options == untouched.options


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_all_bits_are_an_equal_network(options):
    whole = network_of(**options)
    same = whole.first_bits(12)
    assert same is not whole and same.options == whole.options
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in whole.state_dict().items())
    assert torch.equal(same.class_logits(torch.ones(1, 12)), whole.class_logits(torch.ones(1, 12)))


@pytest.mark.parametrize("num_bits", [0, 13, -1, True, 2.0, "8", None])
def test_first_bits_that_a_network_does_not_have(num_bits):
    with pytest.raises(UserError, match=f"num_bits = {num_bits!r}: the codes have 12 bits; give 1 to 12"):
        network_of().first_bits(num_bits)
