"""The CUDA implementation, run by Triton's interpreter on CPU tensors, against the CPU implementation.

On a machine with a CUDA device tests/gpu runs the same kernels on it. test_kernels_compiled.py checks the
compiled code.
"""

import contextlib
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llc.codes import pack_bits
from llc.native import hamming as cpu
from tests.hamming.helpers import random_codes

if torch.cuda.is_available():
    pytest.skip("tests/gpu runs these kernels on the device", allow_module_level=True)
triton = pytest.importorskip("triton", reason="a torch without CUDA brings none")
from triton.runtime import interpreter  # noqa: E402

# Triton reads TRITON_INTERPRET when it is imported and when a kernel is defined, both in tests/conftest.py,
# and when a kernel runs.
from llc.hamming import cuda, cuda_dot, cuda_popc, cuda_table, cuda_topk  # noqa: E402
from llc.kernels import pack_cuda  # noqa: E402

PART = cuda_popc.PART


@pytest.fixture(autouse=True, scope="module")
def interpreted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(cuda_popc, "PART", 256)  # the interpreter's time grows with the number of operations
        if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
            patched = functools.partial(_patch_lang_tensor, interpreter._patch_lang_tensor)
            patch.setattr(interpreter, "_patch_lang_tensor", patched)
        yield


def _patch_lang_tensor(original, tensor, scope):
    """Older interpreters call int() on their numbers, arrays of shape (1,), which numpy 2.4 refuses."""
    original(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.numpy().dtype == b.dtype and a.tolist() == b.tolist()


def test_kernels_are_interpreted():
    assert type(cuda_popc._nearest_kernel).__name__ == "InterpretedFunction", (
        "the kernels were defined before tests/conftest.py set TRITON_INTERPRET"
    )


@settings(max_examples=15)
@given(
    n=st.integers(1, 20),
    m=st.integers(1, 1200),
    num_bits=st.integers(1, 130),
    seed=st.integers(0, 999),
    distinct=st.one_of(st.none(), st.integers(1, 4)),
    data=st.data(),
)
def test_equals_the_cpu(n, m, num_bits, seed, distinct, data):
    k, radius = (
        data.draw(st.integers(1, m), label="k"),
        data.draw(st.integers(0, num_bits + 1), label="radius"),
    )
    queries, database = random_codes(n, num_bits, seed), random_codes(m, num_bits, seed + 1, distinct)
    tensors = torch.from_numpy(queries), torch.from_numpy(database)
    same([cuda.pairwise(*tensors)], [cpu.pairwise(queries, database, 1)])
    same(cuda.search(*tensors, 1), cpu.search(queries, database, 1, 1))
    same(cuda.search(*tensors, k), cpu.search(queries, database, k, 1))
    same(cuda.range_search(*tensors, radius), cpu.range_search(queries, database, radius, 1))


def test_tiles_are_written_in_parts(monkeypatch):
    """There are as many parts as on a GPU, some of which have nothing to write."""
    monkeypatch.setattr(cuda_popc, "PART", PART)
    queries, database = random_codes(9, 70, 0), random_codes(1001, 70, 1)
    found = cuda.range_search(torch.from_numpy(queries), torch.from_numpy(database), 22)
    same(found, cpu.range_search(queries, database, 22, 1))
    assert 10 < len(found[1]) < 1000


def test_carry_save_adders_count_any_number_of_words():
    """1 to 8 words, whole groups of 8, groups and a rest, and bytes that do not fill a word."""
    for num_bits in (*range(32, 289, 32), 257, 300, 512, 600):
        queries, database = random_codes(3, num_bits, 0), random_codes(5, num_bits, 1)
        queries[0], database[0], database[1] = 255, 0, queries[1]  # all bits differ, and none
        tensors = torch.from_numpy(queries), torch.from_numpy(database)
        same([cuda.pairwise(*tensors)], [cpu.pairwise(queries, database, 1)])
        assert cuda.pairwise(*tensors)[0, 0] == 8 * queries.shape[1]


def lowest_in_groups(distances, group_size):
    return torch.stack([group.amin(1) for group in distances.split(group_size, dim=1)], dim=1)


@settings(max_examples=10)
@given(
    n=st.integers(1, 20),
    m=st.integers(1, 4000),
    num_bits=st.integers(1, 130),
    seed=st.integers(0, 999),
    distinct=st.one_of(st.none(), st.integers(1, 40)),
    capacity=st.sampled_from([1, 8]),
    data=st.data(),
)
def test_k_nearest_from_minima_of_groups(n, m, num_bits, seed, distinct, capacity, data):
    """With one or several tiles per group, and with more candidates than there is room for."""
    num_groups = data.draw(st.integers(1, -(-m // 512)), label="most groups")
    k = data.draw(st.integers(1, min(m, 9)), label="k")
    queries, database = random_codes(n, num_bits, seed), random_codes(m, num_bits, seed + 1, distinct)
    tensors = torch.from_numpy(queries), torch.from_numpy(database)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "METHOD", "popc")
        patch.setattr(cuda, "GROUPS_PER_NEIGHBOUR", 0)
        patch.setattr(cuda, "MAX_GROUPS", num_groups)
        patch.setattr(cuda, "CANDIDATES_PER_NEIGHBOUR", capacity)
        if num_groups >= k:
            same(cuda.search(*tensors, k), cpu.search(queries, database, k, 1))
    words = cuda_popc.prepare(tensors[1])
    group_steps = -(-words.num_tiles // num_groups)
    minima = cuda_popc.group_minima(tensors[0], words, group_steps)
    distances = torch.from_numpy(cpu.pairwise(queries, database, 1))
    assert torch.equal(minima.T.int(), lowest_in_groups(distances, group_steps * words.block_m))
    k = min(k, len(minima))
    radii, num_within = cuda_topk.radii_of(minima, k, 8 * queries.shape[1])
    assert torch.equal(radii, minima.sort(dim=0).values[k - 1].int())
    assert torch.equal(num_within.long(), (minima <= radii).sum(0))


@settings(max_examples=10)  # they take a second each
@given(
    n=st.integers(1, 40),
    m=st.integers(1, 500),
    num_bits=st.integers(1, 256),
    seed=st.integers(0, 999),
    distinct=st.one_of(st.none(), st.integers(1, 4)),
    programs=st.sampled_from([1, 5, 2048]),
    parts=st.integers(1, 3),
    group_steps=st.integers(1, 3),
    data=st.data(),
)
def test_products_equal_the_cpu(n, m, num_bits, seed, distinct, programs, parts, group_steps, data):
    """One or several splits, steps, parts of the queries and of the database.

    Tiles have a quarter of the queries that they have on a GPU, because the interpreter's time grows with
    the number of queries. The test below has tiles as on a GPU.
    """
    # for more neighbours than there are tiles, other kernels count
    k = data.draw(st.integers(1, min(m, 1 + m // cuda_dot.BLOCK_M)), label="k")
    queries, database = random_codes(n, num_bits, seed), random_codes(m, num_bits, seed + 1, distinct)
    tensors = torch.from_numpy(queries), torch.from_numpy(database)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "METHOD", "dot")
        patch.setattr(cuda_dot, "BLOCK_N", 32)
        patch.setattr(cuda_dot, "PROGRAMS", programs)
        patch.setattr(cuda_dot, "MAX_BYTES", max(n, m) // parts * 8 * cuda_dot._padded_size(queries.shape[1]))
        patch.setattr(cuda, "GROUPS_PER_NEIGHBOUR", 1)
        same(cuda.search(*tensors, 1), cpu.search(queries, database, 1, 1))
        same(cuda.search(*tensors, k), cpu.search(queries, database, k, 1))
        found = cuda_dot.group_minima(*tensors, group_steps)
    distances = torch.from_numpy(cpu.pairwise(queries, database, 1))
    assert torch.equal(found.T.int(), lowest_in_groups(distances, group_steps * cuda_dot.BLOCK_M))


@pytest.mark.parametrize("method", ["popc", "dot"])
def test_several_splits_of_several_steps_and_halved_queries(monkeypatch, method):
    monkeypatch.setattr(cuda, "METHOD", method)
    monkeypatch.setattr(cuda_popc, "PROGRAMS", 4)
    monkeypatch.setattr(cuda_dot, "PROGRAMS", 4)
    monkeypatch.setattr(cuda, "QUERY_TILE", 11)
    monkeypatch.setattr(cuda, "MAX_CANDIDATES", 3000)
    queries, database = random_codes(13, 40, 0), random_codes(3000, 40, 1, 300)
    tensors = torch.from_numpy(queries), torch.from_numpy(database)
    assert all(part > 1 for part in cuda_popc.split(13, cuda_popc.prepare(tensors[1])))
    for k in (1, 3, 500) if method == "popc" else (1, 3):
        same(cuda.search(*tensors, k), cpu.search(queries, database, k, 1))
    if method == "popc":
        same(cuda.range_search(*tensors, 14), cpu.range_search(queries, database, 14, 1))


def test_products_are_for_many_queries_and_codes_of_up_to_256_bits(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability
    )
    table = [
        ((9, 0), 512, 64, True),
        ((8, 0), 512, 256, True),
        ((8, 6), 10_000, 20, True),
        ((9, 0), 511, 64, False),
        ((9, 0), 10_000, 257, False),
        ((7, 5), 10_000, 64, False),
        ((10, 0), 10_000, 64, False),
    ]
    for capability, n, num_bits, expected in table:
        queries = torch.empty(n, (num_bits + 7) // 8, dtype=torch.uint8)
        assert cuda._takes_dot(queries, queries) is expected, (capability, n, num_bits)
    # the capability of the tensors' device was asked for only where sizes alone did not decide
    assert asked == [torch.device("cpu")] * 5


def test_look_up_in_a_table():
    """Tables of 1 to 3 bytes, and codes with more bits than the classes use."""
    for num_bits in (5, 8, 13, 20):
        class_codes, codes = random_codes(30, num_bits, 0), random_codes(300, num_bits, 1)
        built = torch.from_numpy(cpu.build_table(class_codes, num_bits, 1))
        found = cuda_table.look_up(torch.from_numpy(codes), num_bits, built)
        same([found], [cpu.look_up(codes, num_bits, built.numpy(), 1)])
    assert cuda_table.look_up(torch.from_numpy(codes[:0]), num_bits, built).shape == (0,)


def test_no_queries():
    queries, database = random_codes(3, 20, 0)[:0], random_codes(5, 20, 1)
    tensors = torch.from_numpy(queries), torch.from_numpy(database)
    same([cuda.pairwise(*tensors)], [cpu.pairwise(queries, database, 1)])
    for k in (1, 2):
        same(cuda.search(*tensors, k), cpu.search(queries, database, k, 1))
    same(cuda.range_search(*tensors, 3), cpu.range_search(queries, database, 3, 1))
    same(cuda.range_search(*tensors[::-1], 3), cpu.range_search(database, queries, 3, 1))


@pytest.mark.parametrize(
    "dtype, largest",
    [
        (torch.float16, 0x7C00),
        (torch.bfloat16, 0x7F80),
        (torch.float32, 0x7F80_0000),
        (torch.float64, 0x7FF0_0000_0000_0000),
        (torch.bool, 1),
        (torch.int8, 127),
        (torch.uint8, 255),
        (torch.int32, 2**31 - 1),
        (torch.int64, 2**63 - 1),
        (torch.uint64, 2**64 - 1),
    ],
)
@pytest.mark.parametrize("num_bits", [1, 8, 21])
def test_packing_equals_the_cpu(dtype, largest, num_bits):
    values = torch.randn(num_bits, 40).mul(2)
    values[:, :4] = (
        torch.tensor([0.0, float("nan"), float("inf"), -float("inf")]) if dtype.is_floating_point else 0
    )
    values = (
        (values if dtype.is_floating_point or dtype.is_signed else values.abs()).to(dtype).T
    )  # not contiguous
    as_bits = values.view(getattr(torch, f"uint{8 * values.element_size()}"))
    assert torch.equal(pack_cuda.pack(as_bits, largest), pack_bits(values))
    assert pack_cuda.pack(as_bits[:0], largest).shape == (0, (num_bits + 7) // 8)


def test_kernels_run_on_the_tensors_device(monkeypatch):
    """Every launch is inside torch.cuda.device_of(a tensor of it), as Triton uses the current device."""
    inside, launched = [], []
    run = type(cuda_popc._nearest_kernel).run

    @contextlib.contextmanager
    def device_of(tensor):
        inside.append(tensor)
        yield
        inside.pop()

    def checked_run(self, *arguments, **options):
        assert inside and any(argument is inside[-1] for argument in arguments), self.fn.__name__
        launched.append(self.fn.__name__)
        return run(self, *arguments, **options)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(type(cuda_popc._nearest_kernel), "run", checked_run)
    codes = torch.from_numpy(random_codes(9, 40, 0))
    cuda.pairwise(codes, codes)
    cuda.range_search(codes, codes, 30)
    for method in ("popc", "dot"):
        monkeypatch.setattr(cuda, "METHOD", method)
        for k, groups in ((1, 4), (3, 4), (3, 0)):
            monkeypatch.setattr(cuda, "GROUPS_PER_NEIGHBOUR", groups)
            cuda.search(codes, codes, k)
    cuda_table.look_up(codes, 8, torch.zeros(256, dtype=torch.int32))
    pack_cuda.pack(torch.ones(3, 8, dtype=torch.uint8), 1)
    assert not inside and set(launched) == {
        "_all_kernel",
        "_count_kernel",
        "_write_kernel",
        "_nearest_kernel",
        "_product_kernel",
        "_product_minima_kernel",
        "_unpack_kernel",
        "_pack_kernel",
        "_minima_kernel",
        "_radius_kernel",
        "_collect_kernel",
        "_lowest_kernel",
        "_look_up_kernel",
    }


def test_more_codes_than_int32_can_number_are_refused():
    """They are refused before anything is allocated; the expanded tensors here take no memory."""
    few, many = torch.zeros(1, 8, dtype=torch.uint8), torch.zeros(1, 8, dtype=torch.uint8).expand(1 << 31, 8)
    for call in (
        lambda q, d: cuda.search(q, d, 1),
        lambda q, d: cuda.search(q, d, 5),
        lambda q, d: cuda.range_search(q, d, 1),
        cuda.pairwise,
    ):
        with pytest.raises(
            ValueError, match="database: 2,147,483,648 codes.*up to 2,147,418,112.*in parts and merge"
        ):
            call(few, many)
        with pytest.raises(ValueError, match="queries: 2,147,483,648 codes.*pass the queries in parts"):
            call(many, few)
    most = few.expand(cuda.MAX_CODES, 8)
    for call in (lambda: cuda.pairwise(most, most), lambda: pack_cuda.pack(few.expand(1 << 40, 8), 1)):
        with pytest.raises(ValueError, match="programs exceed CUDA's limit of 2,147,483,647: pass.*in parts"):
            call()


def test_numbers_up_to_the_limit_fit_in_int32():
    """All that the kernels compute in int32, for the largest numbers of codes and queries."""
    for block_m in (cuda_popc.BLOCK_M, cuda_popc.LONG_BLOCK_M):
        tiles = -(-cuda.MAX_CODES // block_m)
        assert tiles * block_m + block_m < 1 << 31  # columns, the stride of words, the sums in cdiv
        for row_blocks in (1, 1024, cuda_popc.MAX_QUERIES // cuda_popc.BLOCK_N):
            splits, steps = cuda_popc.splits_and_steps(row_blocks, tiles, cuda_popc.PROGRAMS)
            assert splits * row_blocks < 1 << 31 and steps <= 1 << cuda_popc.STEP_BITS
            assert splits * steps >= tiles
    assert (65528 << cuda_popc.STEP_BITS) + (1 << cuda_popc.STEP_BITS) - 1 < 0x7FFFFFFF  # the highest key
    # positions in the unpacked bytes, the last tile included; keys from -K to K
    assert cuda_dot.MAX_BYTES + cuda_dot.BLOCK_M * cuda_dot.MAX_BITS < 1 << 31
    assert 2 * cuda_dot.MAX_BITS << cuda_dot.STEP_BITS < 1 << 31
