"""python -m llc.benchmark hamming, small: it runs, compares what it measures, and writes what it prints."""

import dataclasses
import json
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch

import llc.benchmark.__main__ as benchmark
from llc.benchmark import _hamming_beside as beside
from llc.benchmark import _hamming_peers as peers
from llc.benchmark import hamming
from llc.benchmark._hamming_ours import Case, calls, random_codes
from llc.errors import UserError
from llc.hamming import cuda, range_search, search
from tests.conftest import ROOT
from tests.pictures import texts_in


def test_command(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "llc.benchmark",
            "hamming",
            "decode",
            "pack",
            "top1_64",
            "posterior_20",
            "posterior_64",
            "fit_20",
            "--device=cpu",
            "--scale=0.002",
            "--repeats=2",
            "--seconds=0",
            f"--json={tmp_path / 'out.json'}",
            f"--plot={tmp_path / 'out.svg'}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    names = ["decode", "pack", "top1_64", "posterior_20", "posterior_64", "fit_20"]
    assert [w["name"] for w in written["workloads"]] == names and written["machine"]["threads"] >= 1
    drawn = texts_in(tmp_path / "out.svg")
    assert f"{tmp_path / 'out.svg'}: the figures as bars\n" in done.stdout
    items = [workload["item"] for workload in written["workloads"]]
    assert items == ["code", "value", "query", "code", "code", "code"]
    for workload in written["workloads"]:
        assert f"{workload['name']}: {workload['title']}; ns for each {workload['item']}" in drawn
        assert {f"{1e9 * way['median'] / way['n']:,.1f}" for way in workload["ways"]} <= drawn
        ours, *others = workload["ways"]
        assert ours["way"].startswith("llc") and ours["ours_is"] == 1 and len(others) >= 1
        for way in workload["ways"]:
            assert len(way["seconds"]) == 2 and way["way"] in done.stdout
            assert way["ours_is"] == pytest.approx(ours["n"] / ours["median"] / (way["n"] / way["median"]))
    assert "faiss" in done.stdout  # its version, or that it is not installed


SMALL = ("--device=cpu", "--scale=0.001", "--repeats=1", "--seconds=0")


@pytest.mark.parametrize("name", sorted(hamming.WORKLOADS.keys() - {"table24"}))
def test_every_workload_compares_its_ways(name, capsys, tmp_path):
    hamming.main([name, *SMALL, f"--json={tmp_path / 'out.json'}"])
    [workload] = json.loads((tmp_path / "out.json").read_text())["workloads"]
    names = [way["way"] for way in workload["ways"]]
    assert names[0].startswith("llc ") and len(set(names)) == len(names)
    assert len(names) > 1 or name in ("table20", "range_64")  # beside FAISS, where it is installed
    said = capsys.readouterr().out
    assert all(f"  {way} " in said for way in names)
    for library, tried in workload["tried"].items():
        assert f"{library} {min(tried, key=tried.get)}" in names and f"{library}'s ways in the trial" in said


def test_without_faiss_and_usearch(monkeypatch, capsys):
    monkeypatch.setattr(peers, "faiss", None)
    monkeypatch.setattr(peers, "usearch", None)
    hamming.main(["top100_64", "range_64", "pairwise", *SMALL])
    said = capsys.readouterr().out
    assert said.count("faiss is not installed") == said.count("usearch is not installed") == 3


def test_the_fastest_way_of_a_library_is_found_on_few_queries():
    queries, asked = np.zeros((9, 1), np.uint8), []

    def way(seconds):
        def make(queries):
            asked.append(len(queries))
            return lambda: time.sleep(seconds)

        return make

    candidates = {"slow": way(0.05), "fast": way(0.001), "middling": way(0.02)}
    best, tried = peers.fastest("faiss", candidates, queries, 3, False)
    assert (best.name, best.amount) == ("faiss fast", 9) and asked == [3, 3, 3, 9]
    assert tried.keys() == candidates.keys() and tried["slow"] >= 0.05 > tried["middling"] >= 0.02


@pytest.mark.parametrize("num_bits, k, n", [(20, 1, 131), (20, 100, 1), (64, 7, 131), (256, 100, 33)])
@pytest.mark.parametrize("library", ["faiss", "usearch"])
def test_every_way_of_a_library_finds_what_ours_finds(library, num_bits, k, n, monkeypatch):
    if getattr(peers, library) is None:
        pytest.skip(f"{library} is not installed")
    queries, database = random_codes(n, num_bits, 0), random_codes(1003, num_bits, 1)
    database[-1] = queries[-1]
    check = hamming._distances_of(queries, database)
    expected, tried = check(search(queries, database, k)), []

    def fastest(library, candidates, queries, trial, cpu_time):
        for name, make in candidates.items():
            assert (check(make(queries)()) == expected).all(), name
            assert (check(make(queries[:1])()) == expected[:1]).all(), name
            tried.append(name)
        name = min(candidates)
        return peers.Way(f"{library} {name}", len(queries), candidates[name](queries)), {name: 1.0}

    monkeypatch.setattr(peers, "fastest", fastest)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # so that one query has fewer than there are
    ways, _ = getattr(peers, f"{library}_search")(queries, database, k)
    assert all((check(way.call()) == expected).all() and way.amount == n for way in ways)
    if library == "usearch":
        assert tried == ["search", "Index.search"]
        return
    assert {"IndexBinaryFlat", "IndexBinaryFlat mc", "knn_hamming hc", "knn_hamming mc"} <= set(tried)
    assert ("IndexBinaryShards" in tried) == (n == 1)
    assert ("IndexBinaryFlat, 1 batch" in tried) == (n > 32)
    assert ("IndexBinaryFlat, 32 bits" in tried) == (num_bits == 20)


def test_the_machine_is_described_with_faiss_and_its_instructions(monkeypatch):
    level = types.SimpleNamespace(get_level_name=lambda: "AVX512_VPOPCNT")
    faiss = types.SimpleNamespace(
        __version__="1.15.1", SIMDConfig=level, get_compile_options=lambda: "OPTIMIZE DD "
    )
    monkeypatch.setattr(peers, "faiss", faiss)
    assert hamming.describe_machine("cpu")["faiss"] == (
        "1.15.1, SIMD level AVX512_VPOPCNT, compiled with OPTIMIZE DD"
    )


def test_range_searches_are_compared_whatever_the_order_of_what_they_found():
    queries, database = random_codes(7, 20, 0), random_codes(1003, 20, 1)
    lims, distances, indices = range_search(queries, database, 5)
    order = np.concatenate([np.arange(a, b)[::-1] for a, b in zip(lims, lims[1:])])
    expected = hamming._sets_found((lims, distances, indices))
    assert (expected[:, 0] == np.diff(lims)).all() and len(indices) > 7
    reversed_order = (lims, distances[order].astype(np.float32), indices[order])
    assert (hamming._sets_found(reversed_order) == expected).all()
    assert (hamming._sets_found(range_search(queries, database, 4)) != expected).any()
    assert (hamming._sets_found((lims, distances, np.roll(indices, 1))) != expected).any()


def test_every_second_turn_is_in_reverse_order():
    order = []

    def way(name):
        return hamming.Way(name, 1, lambda: order.append(name) or np.zeros((1, 1), np.int64))

    workload = hamming.Workload("three ways", [way("a"), way("b"), way("c")], np.asarray)
    hamming.measure("three", workload, hamming.Settings(device="cpu", repeats=3, seconds=0))
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"


# ---- another version of llc beside this one ---------------------------------------------------------------


def version_in(folder, pack="np.packbits(np.asarray(values) > 0, axis=-1)", package=""):
    """Writes a version of llc that can only pack; its first call takes a second, the next ones 0.02 s."""
    (folder / "llc").mkdir()
    (folder / "llc" / "__init__.py").write_text(package)
    (folder / "llc" / "hamming.py").write_text("")
    (folder / "llc" / "codes.py").write_text(
        "import time\n"
        "import numpy as np\n"
        "seconds = [1]\n"
        "def pack_bits(values):\n"
        "    time.sleep(seconds.pop() if seconds else 0.02)\n"
        "    print('what libraries print is no answer')\n"
        f"    return {pack}\n"
    )
    return folder


def test_another_version_runs_in_turns_with_this_one(tmp_path, capsys):
    other = version_in(tmp_path)
    hamming.main(
        ["pack", "--repeats=3", *SMALL[:2], "--seconds=0", f"--beside={other}", f"--json={other}/out"]
    )
    written = json.loads((other / "out").read_text())
    assert written["machine"]["beside"] == str(other)
    ours, theirs, numpy = written["workloads"][0]["ways"]
    assert [way["way"] for way in (ours, theirs, numpy)] == [
        "llc pack_bits",
        "llc pack_bits, other version",
        "numpy.packbits(z > 0)",
    ]
    # The first call, of a second, is not timed.
    assert len(theirs["seconds"]) == 3 and all(0.02 <= seconds < 1 for seconds in theirs["seconds"])
    assert theirs["ours_is"] == pytest.approx(theirs["median"] / ours["median"])
    assert "llc pack_bits, other version" in capsys.readouterr().out


def test_this_version_beside_itself(capsys):
    hamming.main(["decode", "table20", "top100_20", "range_64", "pairwise", *SMALL, f"--beside={ROOT}"])
    said = capsys.readouterr().out
    assert said.count(", other version") == 6
    row = next(line for line in said.splitlines() if "llc Decoder, table, other version" in line)
    # Beside the table, not beside the scan, which takes far longer.
    table = next(line for line in said.splitlines() if "llc Decoder, table  " in line)
    milliseconds = [
        float(line.split("version" if "version" in line else "table")[1].split()[1]) for line in (table, row)
    ]
    assert float(row.split()[-2].rstrip("x")) == pytest.approx(milliseconds[1] / milliseconds[0], rel=0.2)


def test_versions_that_disagree_are_an_error(tmp_path):
    other = version_in(tmp_path, pack="np.packbits(np.asarray(values) < 0, axis=-1)")
    with pytest.raises(AssertionError, match="pack: llc pack_bits gives other results than the version"):
        hamming.main(["pack", *SMALL, f"--beside={other}"])


@pytest.mark.parametrize(
    "written, message",
    [
        (None, "expected a folder that holds llc"),
        (
            {"package": "__file__ = '/elsewhere/llc/__init__.py'"},
            "imported /elsewhere/llc/__init__.py instead",
        ),
        ({"package": "raise SystemExit(3)"}, "its process ended with status 3"),
        ({"pack": "1 / 0"}, "its process ended with status 1"),
    ],
)
def test_another_version_that_cannot_be_measured_is_an_error(written, message, tmp_path):
    if written is not None:
        version_in(tmp_path, **written)
    with pytest.raises(UserError, match=message) as error:
        hamming.main(["pack", *SMALL, f"--beside={tmp_path}"])
    assert str(tmp_path) in str(error.value)


def test_the_process_of_another_version_ends_with_the_benchmark(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with beside.OtherVersion(version_in(tmp_path)) as other:
            assert other._process.poll() is None
            raise KeyboardInterrupt
    assert other._process.poll() is not None


def test_results_have_the_same_digest_only_if_they_are_equal():
    case = Case("search", 20, 7, 103, 3)
    [call] = calls(case, "cpu")
    digest = call.digest()
    assert digest == calls(case, "cpu")[0].digest()
    distances, indices = call.run()
    for wrong in ((distances, indices.flip(1)), (distances.long(), indices), (distances[:, :2], indices)):
        assert dataclasses.replace(call, run=lambda result=wrong: result).digest() != digest


def test_first_calls_are_measured_in_new_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hamming, "FIRST", {"llc pack_bits": Case("pack", 64, 100)})
    hamming.main(
        ["first", "--repeats=2", "--device=cpu", f"--beside={version_in(tmp_path)}", f"--json={tmp_path}/out"]
    )
    [workload] = json.loads((tmp_path / "out").read_text())["workloads"]
    ours, theirs = workload["ways"]
    assert [way["way"] for way in (ours, theirs)] == ["llc pack_bits", "llc pack_bits, other version"]
    assert all(seconds >= 1 for seconds in theirs["seconds"])  # a first call in each of the processes
    assert all(0.02 <= seconds < 1 for seconds in theirs["second_calls"])
    assert len(ours["seconds"]) == len(theirs["imports"]) == 2 and min(ours["imports"]) > 0
    assert theirs["ours_is"] == pytest.approx(theirs["median"] / ours["median"])
    said = capsys.readouterr().out
    assert "import ms" in said and "llc pack_bits, other version" in said


def test_a_first_call_that_fails_is_an_error(tmp_path):
    version_in(tmp_path, pack="1 / 0")
    clock = hamming.Settings(device="cpu").clock()
    with pytest.raises(UserError, match="ended with status 1"):
        beside.first_call(tmp_path, Case("pack", 64, 100), clock, 1)


# ---- products, limits and what is refused -----------------------------------------------------------------


@pytest.mark.parametrize("num_bits, k", [(20, 1), (64, 1), (64, 7), (256, 1), (256, 100)])
def test_products_on_tensor_cores_find_what_ours_finds(num_bits, k):
    """On the CPU, with sizes that fill neither tiles nor multiples of 8; the last query is the last code."""
    queries, database = random_codes(131, num_bits, 0), random_codes(1003, num_bits, 1)
    database[-1] = queries[130]
    ways = peers.tensor_core_ways(queries, database, num_bits, k, "cpu", entries=64 * 1003)
    assert [way.name.split()[1] for way in ways] == ["bf16", "int8"] and {way.amount for way in ways} == {131}
    check = hamming._distances_of(queries, database)
    expected = check(search(queries, database, k))
    assert expected[130, 0] == 0 < expected[:130].min()
    for way in ways:
        assert (check(way.call()) == expected).all()


def test_ours_is_measured_by_either_method_on_a_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "METHOD", "what it was")
    ways = hamming._methods("llc search", 7, lambda: cuda.METHOD, "cuda")
    assert [(way.name, way.amount, way.call()) for way in ways] == [
        ("llc search, popc", 7, "popc"),
        ("llc search, tensor cores", 7, "dot"),
    ]
    assert cuda.METHOD == "what it was" and not hamming._methods("llc search", 7, None, "cpu")


def test_products_that_cannot_be_exact_or_that_torch_refuses_are_left_out():
    def kinds(n, num_bits):
        codes = random_codes(n, num_bits, 0)
        return [way.name.split()[1] for way in peers.tensor_core_ways(codes, codes, num_bits, 1, "cpu")]

    assert kinds(20, 264) == ["int8"] and kinds(16, 64) == ["bf16"] and kinds(17, 256) == ["bf16", "int8"]


@pytest.mark.parametrize(
    "gpu, popc, memory",
    [
        # an H100: 132 x 16 popc x 1.98 GHz, two words;
        # 2 x 2.619 GHz x 5,120 bits, 8,080 bytes for 10,000 pairs
        (
            {"clock_rate": 1_980_000, "memory_clock_rate": 2_619_000, "memory_bus_width": 5120},
            2.091e12,
            4.149e12,
        ),
        ({"clock_rate": 1_980_000}, 2.091e12, None),
        ({}, None, None),
    ],
)
def test_limits_of_a_gpu_and_those_that_torch_does_not_know(gpu, popc, memory, monkeypatch):
    properties = types.SimpleNamespace(multi_processor_count=132, **gpu)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    found = hamming._limits("cuda", np.zeros((10, 8), np.uint8), np.zeros((1000, 8), np.uint8))
    assert found == {
        "limit of one popc a word": popc and pytest.approx(popc, rel=1e-4),
        "limit of memory bandwidth": memory and pytest.approx(memory, rel=1e-4),
    }


def test_an_unknown_limit_is_said_to_be_unknown(capsys):
    options = hamming.Settings(device="cpu", repeats=1, seconds=0)
    way = hamming.Way("llc search", 10, lambda: np.zeros((1, 1), np.int64))
    limits = {"limit of popc": None, "limit of memory": 1e30}
    workload = hamming.Workload("of a GPU", [way], np.asarray, 100, limits)
    assert hamming.measure("top1", workload, options)["limits"]["limit of popc"] is None
    said = capsys.readouterr().out
    assert "not known: torch does not say" in said and "ours reaches 0.00 of it" in said


def test_ways_that_disagree_are_an_error(monkeypatch):
    monkeypatch.setattr(
        peers, "_numpy_nearest", lambda queries, database: np.zeros((len(queries), 1), np.int64)
    )
    with pytest.raises(AssertionError, match="numpy bitwise_count .* disagree"):
        hamming.main(["top1_64", "--device=cpu", "--scale=0.001", "--repeats=1"])


@pytest.mark.parametrize(
    "words, message",
    [
        (["hamming", "top7"], "top100_64"),
        (["hamming", "--scale=2"], "scale = '2'"),
        (["hamming", "--scale=0"], "scale = '0'"),
        (["hamming", "--repeats=0"], "repeats = '0'"),
        (["hamming", "--cpu-time"], "cpu-time is now called cpu_time"),
        (["nothing"], "nothing is not a benchmark"),
        ([], "NAME is missing"),
    ],
)
def test_wrong_words_are_refused_with_what_there_is(words, message, capsys):
    with pytest.raises(UserError) as error:
        benchmark.main(words)
    assert message in str(error.value) and not capsys.readouterr().out


def test_the_command_lists_the_benchmarks_and_their_arguments():
    command = [sys.executable, "-m", "llc.benchmark"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "error:" in refused.stderr
    for name in ("decoder", "epoch", "hamming", "loader", "writer"):
        assert f"    {name} " in refused.stderr
    listed = subprocess.run([*command, "hamming", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0
    for field in dataclasses.fields(hamming.Settings):
        assert field.metadata["help"] in listed.stdout


def test_words_that_are_measured(capsys):
    with pytest.raises(UserError, match="elsewhere"):
        hamming.main(["top1_64", "elsewhere"])
    assert not capsys.readouterr().out
