"""Two machines, simulated on loopback: two torchrun agents of one process each, with c10d rendezvous.

Each has train betons of its own.
"""

import json
import os
import socket
import subprocess
import sys

import numpy as np

from llc.data.shards import open_shards
from llc.data.subset import write_subset
from tests.conftest import ROOT, SMALL
from tests.waiting import seconds

CHANCE = 1 / 6


def test_two_agents_train_one_run(betons, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    whole = open_shards(betons[0])
    halves = [tmp_path / "data" / f"half_{agent}.beton" for agent in range(2)]
    halves[0].parent.mkdir()
    for agent, half in enumerate(halves):
        write_subset(whole, np.arange(agent, len(whole), 2), half)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc_per_node=1",
        "--rdzv_backend=c10d",
        "--rdzv_id=test",
        f"--rdzv_endpoint=127.0.0.1:{port}",
        "--local_addr=127.0.0.1",
        "train_llc.py",
        *SMALL,
        f"--data.val_dataset={betons[1]}",
        f"--logging.folder={tmp_path / 'runs'}",
        "--logging.name=run",
        "--codebook.epochs=3",
        "--instance.epochs=2",
    ]
    cores = sorted(os.sched_getaffinity(0))

    def start(agent):
        """Each agent has a core of its own, if there are two, because machines do not share cores."""
        return subprocess.Popen(
            [*command, f"--data.train_dataset={halves[agent]}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {cores[agent % len(cores)]}),
        )

    agents = [start(agent) for agent in range(2)]
    try:
        texts = [agent.communicate(timeout=seconds(240))[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], texts
    assert sum("2 processes on cpu" in text for text in texts) == 1  # only the main process prints
    run = tmp_path / "runs" / "run"
    assert [path.name for path in run.parent.iterdir()] == ["run"]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 3 + 2 and lines[-1]["top1_mhd_flip"] > 1.5 * CHANCE
    with np.load(run / "decoder.npz") as learnt:
        description = json.loads(str(learnt["description"]))
        assert description["num_images"] == learnt["posterior.counts"].sum() == 240
    assert description["images"] not in {"", *(open_shards(half).identity for half in halves)}
