"""BlurPool, any ResNet."""

import pytest
import torch
import torch.nn.functional as F
import torchvision

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
@pytest.mark.parametrize(
    "options",
    [{}, {"logit_scale": 0.25, "hidden": 5}, {"logit_scale": "learnable", "normalize": "batchnorm"}],
)
def test_the_first_bits_are_a_network_of_their_own(options):
    torch.manual_seed(3)
    network = Network("resnet18", 12, 3, width=8, **options)
    torch.nn.init.normal_(network.codebook)
    network.mean += 7  # an encoder may have its own
    network.train()(torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8))  # statistics of batch norm
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    z = network.eval()(images)
    for num_bits in (1, 5, 12):
        short = network.first_bits(num_bits)
        own = short(images)
        assert not short.training and torch.allclose(own, z[:, :num_bits], atol=1e-5)
        assert torch.equal(short.codebook, network.codebook[:, :num_bits])
        assert torch.allclose(short.class_logits(own), network.class_logits(z, num_bits), atol=1e-4)
        assert Network(**short.options).options == short.options
    assert torch.allclose(network.class_logits(z, 12), network.class_logits(z))
    short.projection.weight.zero_()
    assert torch.equal(network(images), z)
    for num_bits in (0, 13):
        with pytest.raises(UserError, match=f"num_bits = {num_bits}: the codes have 12 bits; give 1 to 12"):
            network.first_bits(num_bits)


def test_options_build_the_same_network():
    network = Network("resnet18", 12, 3, width=8, logit_scale="learnable", normalize="batchnorm", hidden=4)
    again = Network(**network.options)
    assert again.options == network.options and list(again.state_dict()) == list(network.state_dict())
    with pytest.raises(UserError, match="normalize = 'layernorm'"):
        Network("resnet18", 12, 3, width=8, normalize="layernorm")
