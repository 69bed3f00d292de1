"""python -m llc.benchmark hamming, small: it runs, compares what it measures, and writes what it prints."""

import dataclasses
import json
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

import llc.benchmark.__main__ as benchmark
from llc.benchmark import hamming
from llc.errors import UserError
from llc.hamming import cuda, search
from tests.conftest import ROOT


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
            "--device=cpu",
            "--scale=0.002",
            "--repeats=2",
            "--seconds=0",
            f"--json={tmp_path / 'out.json'}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert [w["name"] for w in written["workloads"]] == ["decode", "pack", "top1_64"] and written["machine"][
        "threads"
    ] >= 1
    for workload in written["workloads"]:
        ours, *others = workload["ways"]
        assert ours["way"].startswith("llc") and ours["ours_is"] == 1 and len(others) >= 1
        for way in workload["ways"]:
            assert len(way["seconds"]) == 2 and way["way"] in done.stdout
            assert way["ours_is"] == pytest.approx(ours["n"] / ours["median"] / (way["n"] / way["median"]))
    assert "faiss" in done.stdout  # its version, or that it is not installed


def test_without_faiss(monkeypatch, capsys):
    monkeypatch.setattr(hamming, "faiss", None)
    hamming.main(["top100_64", "--device=cpu", "--scale=0.001", "--repeats=1", "--seconds=0"])
    assert "not installed" in capsys.readouterr().out


@pytest.mark.parametrize("num_bits, k", [(20, 1), (64, 1), (64, 7), (256, 1), (256, 100)])
def test_products_on_tensor_cores_find_what_ours_finds(num_bits, k):
    """On the CPU, with sizes that fill neither tiles nor multiples of 8; the last query is the last code."""
    queries, database = hamming._random_codes(131, num_bits, 0), hamming._random_codes(1003, num_bits, 1)
    database[-1] = queries[130]
    ways = hamming._tensor_core_ways(queries, database, num_bits, k, "cpu", entries=64 * 1003)
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
        codes = hamming._random_codes(n, num_bits, 0)
        return [way.name.split()[1] for way in hamming._tensor_core_ways(codes, codes, num_bits, 1, "cpu")]

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
    options = types.SimpleNamespace(repeats=1, seconds=0, cpu_time=False, device="cpu")
    way = hamming.Way("llc search", 10, lambda: np.zeros((1, 1), np.int64))
    limits = {"limit of popc": None, "limit of memory": 1e30}
    workload = hamming.Workload("of a GPU", [way], np.asarray, 100, limits)
    assert hamming.measure("top1", workload, options)["limits"]["limit of popc"] is None
    said = capsys.readouterr().out
    assert "not known: torch does not say" in said and "ours reaches 0.00 of it" in said


def test_ways_that_disagree_are_an_error(monkeypatch):
    monkeypatch.setattr(
        hamming, "_numpy_nearest", lambda queries, database: np.zeros((len(queries), 1), np.int64)
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
