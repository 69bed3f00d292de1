"""The encoder on a CUDA device: the CPU's codes, except where z is within rounding of 0."""

import pytest
import torch

import llc
from llc import encode
from llc.codes import pack_bits
from llc.data.preprocessing import Preprocessing
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from tests.conftest import trained_network
from tests.original import pictures

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


# tolerances relative to the largest |z|, for float32 sums and for bfloat16's 8 bits
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-3), ("auto", 0.1)])
def test_codes_on_cuda_are_those_of_the_cpu(precision, tolerance):
    encoder = llc.Encoder(
        trained_network("resnet18", 40, 9, width=32),
        Preprocessing(64, 0.875, "area", IMAGENET_MEAN, IMAGENET_STD),
        flip=True,
        precision=precision,
    )
    images = pictures(24, seed=1, size=80)
    z, classes = encoder.project(images), encoder.classify(images, "mhd", k=9)
    encoder.to("cuda")
    on_cuda = encoder.project(images)
    assert on_cuda.is_cuda and encoder.encode(images).is_cuda and encoder.device.type == "cuda"
    assert (on_cuda.cpu() - z).abs().max() <= tolerance * z.abs().max()
    assert torch.equal(encoder.encode(images.cuda()), pack_bits(on_cuda))
    labels = encoder.classify(images, "mhd", k=9).labels
    assert (
        labels.is_cuda and labels.shape == classes.labels.shape and len(torch.unique(pack_bits(z), dim=0)) > 3
    )


def test_a_folder_is_encoded_on_cuda_as_on_the_cpu(image_tree):
    """In several batches, whose codes arrive on the host while the next are computed."""
    encoder = llc.Encoder(
        trained_network("resnet18", 40, 6, width=32),
        Preprocessing(32, 0.875, "area", IMAGENET_MEAN, IMAGENET_STD),
        precision="fp32",
    )
    on_cpu, on_cuda = (
        encode.encode(
            encoder, image_tree / "val", encode.Encoding(device=device, batch_size=8, num_workers=2)
        )
        for device in ("cpu", "cuda")
    )
    for name in ("labels", "files", "class_names"):
        assert on_cuda[name].tolist() == on_cpu[name].tolist()
    bits = [llc.unpack_bits(found["codes"], 40) for found in (on_cpu, on_cuda)]
    assert (bits[0] != bits[1]).mean() < 0.01  # those where z is within rounding of 0
    assert len(set(map(tuple, bits[0].tolist()))) > 3
