"""The CUDA implementation of packing, search and decoders, compared with the CPU's.

tests/hamming compares the CPU's with Python integers.
"""

import numpy as np
import pytest
import torch

import llc
from llc.hamming import Decoder, pairwise, range_search, search
from tests.hamming.helpers import random_codes

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
from llc.hamming import cuda, cuda_dot
from llc.kernels.cuda_launch import check_launch

pytestmark = pytest.mark.gpu


def codes(n, num_bits, seed, distinct=None):
    return torch.from_numpy(random_codes(n, num_bits, seed, distinct))


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.is_cuda and a.dtype == b.dtype and torch.equal(a.cpu(), b)


@pytest.mark.parametrize("num_bits", [1, 8, 20, 32, 33, 64, 100, 160, 192, 224, 256, 257, 2048, 4096])
@pytest.mark.parametrize(
    "n, m, distinct",
    [
        (1, 1, None),
        (1, 40_000, None),
        (300, 5000, None),
        (300, 5000, 7),
        (9000, 700, None),
        (15, 4095, None),
        (16, 4096, None),
        (17, 4097, None),
    ],
)
def test_search_equals_the_cpu(num_bits, n, m, distinct):
    if n * m * num_bits > 1 << 29:  # the CPU would take minutes
        n = 9
    queries, database = codes(n, num_bits, 0), codes(m, num_bits, 1, distinct)
    on_gpu = queries.cuda(), database.cuda()
    for k in sorted({1, min(m, 2), min(m, 100), min(m, 1500)}):
        same(search(*on_gpu, k), search(queries, database, k))
    radius = num_bits // 3
    same(range_search(*on_gpu, radius), range_search(queries, database, radius))
    same([pairwise(*on_gpu)], [pairwise(queries, database)])


@pytest.mark.skipif(torch.cuda.get_device_capability() < (8, 0), reason="Triton has no int8 products here")
@pytest.mark.parametrize("num_bits", [1, 20, 33, 64, 65, 100, 129, 256])
@pytest.mark.parametrize(
    "n, m, distinct",
    [(1, 1, None), (1, 40_000, None), (127, 4095, None), (128, 4096, 7), (300, 4097, None), (3000, 700, 20)],
)
def test_products_and_popc_agree(monkeypatch, num_bits, n, m, distinct):
    queries, database = codes(n, num_bits, 0).cuda(), codes(m, num_bits, 1, distinct).cuda()
    for k in sorted({1, min(m, 2), min(m, 100)}):
        found = {}
        for method in ("popc", "dot", None):
            monkeypatch.setattr(cuda, "METHOD", method)
            found[method] = search(queries, database, k)
        same(found["dot"], [part.cpu() for part in found["popc"]])
        same(found[None], [part.cpu() for part in found["popc"]])


@pytest.mark.parametrize("method", ["popc", "dot"])
@pytest.mark.parametrize("num_bits, m", [(24, 300_000), (64, 300_000), (256, 200_001)])
def test_k_nearest_of_many_codes(monkeypatch, method, num_bits, m):
    """Enough groups of codes for each k; with few distinct codes there is no room for all candidates."""
    monkeypatch.setattr(cuda, "METHOD", method)
    queries = codes(40, num_bits, 0)
    for distinct in (None, 500):
        database = codes(m, num_bits, 1, distinct)
        for k in (2, 10, 100):
            same(search(queries.cuda(), database.cuda(), k), search(queries, database, k))
    monkeypatch.setattr(cuda, "MAX_GROUPS", 450)  # of several tiles each
    same(search(queries.cuda(), database.cuda(), 100), search(queries, database, 100))


def test_all_codes_equal_and_all_wanted(monkeypatch):
    monkeypatch.setattr(cuda, "MAX_CANDIDATES", 100_000)  # so that queries are halved
    queries, database = codes(33, 64, 0, 1), codes(20_000, 64, 0, 1)
    for k in (1, 5, 100, 20_000):
        distances, indices = search(queries.cuda(), database.cuda(), k)
        assert (distances == 0).all() and (indices.cpu() == torch.arange(k)).all()


@pytest.mark.parametrize("method", ["popc", "dot"])
def test_a_large_database(monkeypatch, method):
    monkeypatch.setattr(cuda, "METHOD", method)
    database = torch.randint(
        0, 256, (6_000_000, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert database.numel() * 8 > cuda_dot.MAX_BYTES  # so products are made of several parts of it
    queries = database[::600_000].clone()
    for k in (1, 10):
        same(search(queries.cuda(), database.cuda(), k), search(queries, database, k))


@pytest.mark.parametrize("method", ["popc", "dot"])
def test_inference_tensors(monkeypatch, method):
    monkeypatch.setattr(cuda, "METHOD", method)
    values = torch.randn(300, 64)
    with torch.inference_mode():
        packed = llc.pack_bits(values.cuda() + 0)
        for k in (1, 5):
            same(search(packed, packed, k), search(packed.cpu(), packed.cpu(), k))
        same([Decoder(packed).mhd(packed)], [Decoder(packed.cpu()).mhd(packed.cpu())])


@pytest.mark.parametrize("method", ["popc", "dot"])
def test_another_stream(monkeypatch, method):
    """Kernels wait for earlier work on their stream: here the codes arrive late."""
    monkeypatch.setattr(cuda, "METHOD", method)
    values, database = torch.randn(300, 64).cuda(), codes(5000, 64, 1).cuda()
    expected = [search(llc.pack_bits(values.cpu()), database.cpu(), k) for k in (1, 5)]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        late = torch.zeros_like(values)
        torch.cuda._sleep(200_000_000)  # a tenth of a second
        late.copy_(values)
        found = [search(llc.pack_bits(late), database, k) for k in (1, 5)]
        for a, b in zip(found, expected):
            same(a, b)


def test_launching_is_checked():
    check_launch(torch.device("cuda"))


@pytest.mark.parametrize("num_bits", [1, 8, 20])
@pytest.mark.parametrize("num_classes, distinct", [(1, None), (200, None), (200, 20)])
def test_decoders_equal_the_cpu(num_bits, num_classes, distinct):
    class_codes, images = codes(num_classes, num_bits, 0, distinct), codes(3000, num_bits, 1)
    images[:num_classes] = class_codes
    expected = Decoder(class_codes, table=False)
    for table in (True, False, None):
        decoder = Decoder(class_codes.cuda(), table)
        same(
            [decoder.mhd(images.cuda()), decoder.ed(images.cuda())],
            [expected.mhd(images), expected.ed(images)],
        )
    same(
        [llc.decode_mhd(images.cuda(), class_codes.cuda()), llc.decode_ed(images.cuda(), class_codes.cuda())],
        [expected.mhd(images), expected.ed(images)],
    )


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.int8,
        torch.uint8,
        torch.int64,
        torch.bool,
    ],
)
@pytest.mark.parametrize("num_bits", [1, 7, 20, 64, 4096])
def test_packing_equals_the_cpu(dtype, num_bits):
    values = torch.randn(num_bits, 500).mul(2)
    if dtype.is_floating_point:
        values[:, :4] = torch.tensor([0.0, float("nan"), float("inf"), -float("inf")])
    values = values.to(dtype).T
    packed = llc.pack_bits(values.cuda())
    assert packed.is_cuda and torch.equal(packed.cpu(), llc.pack_bits(values))
    assert torch.equal(llc.unpack_bits(packed, num_bits).cpu(), llc.unpack_bits(packed.cpu(), num_bits))
    assert llc.pack_bits(values[:0].cuda()).shape == (0, (num_bits + 7) // 8)


def test_smallest_numbers_are_positive():
    # subnormal: a comparison that flushes such values to zero would pack 0
    values = torch.full((1, 8), 1e-45).cuda()
    assert llc.pack_bits(values).tolist() == [[255]]


def test_codes_on_two_devices_are_refused():
    with pytest.raises(ValueError, match="queries are on cuda:0, database on cpu: move one"):
        search(codes(3, 20, 0).cuda(), codes(3, 20, 1), 1)


@pytest.mark.parametrize("num_bits", [9, 16, 20, 40, 64])
def test_posterior_decoding_equals_the_cpus(num_bits):
    rng = np.random.default_rng(num_bits)
    class_codes = np.packbits(rng.integers(0, 2, (50, num_bits)), axis=1)
    labels = rng.integers(0, 50, 5000)
    train = class_codes[labels] ^ np.packbits(rng.random((5000, num_bits)) < 0.3, axis=1)
    decoder = llc.hamming.PosteriorDecoder.fit(train, labels, num_bits, 50, class_codes=class_codes)
    queries = torch.from_numpy(np.packbits(rng.integers(0, 2, (3001, num_bits)), axis=1))
    for k in (1, 5, 50):
        classes, probabilities = decoder.decode(queries, k)
        on_gpu, probabilities_on_gpu = decoder.decode(queries.cuda(), k)
        assert on_gpu.is_cuda and torch.equal(on_gpu.cpu(), classes)
        torch.testing.assert_close(probabilities_on_gpu.cpu(), probabilities, rtol=1e-4, atol=1e-7)
        assert torch.equal(decoder.classes(queries.cuda(), k).cpu(), classes)
    torch.testing.assert_close(
        decoder.log_density(queries.cuda()).cpu(), decoder.log_density(queries), rtol=1e-4, atol=1e-3
    )
    assert len(decoder.classes(queries[:0].cuda())) == 0
