"""Real image files and real command lines, small."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from numba import uint8, uint32, uint64
from PIL import Image

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = (
        "1"  # read when Triton is imported, which much of torch does: before anything else here
    )
    with contextlib.suppress(ImportError):
        import triton  # noqa: F401

        # their kernels are interpreted only if they are made now, and other tests import them too
        import llc.hamming.cuda  # noqa: F401
        import llc.kernels.pack_cuda  # noqa: F401
    del os.environ["TRITON_INTERPRET"]

from llc.checkpoints import from_original
from llc.network import Network
from tests.original import OriginalResNet, random_values, resnet18

# a first call may compile a kernel; the phase "explain" traces every line of that, which takes minutes
settings.register_profile("llc", deadline=None, phases=set(Phase) - {Phase.explain})
settings.load_profile("llc")


ROOT = Path(__file__).resolve().parent.parent

# A shell's background job ignores Ctrl-C, and so would all processes that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As numba shares them with everyone in the process. FFCV's loader marks them as read-only, and numba's tables of what it has compiled, which
# have them as keys, are broken then.
NUMBA_TYPES = uint8[::1], uint8[:, ::1], uint32[::1], uint64[::1]


@pytest.fixture(autouse=True)
def numba_types_as_they_were():
    yield
    for shared in NUMBA_TYPES:
        shared.mutable = True


def run_command(*words, processes=None, check=True, timeout=240):
    """Runs a command line of the README in a subprocess: python WORDS, or torchrun --nproc_per_node=processes WORDS."""
    launcher = (
        []
        if processes is None
        else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    )
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def run_llc():
    return run_command


def draw(rng, label, size=(40, 36)):
    """A noisy picture whose class is its stripes: direction and colour."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    stripes = ((rows if label % 2 else columns) // 5) % 2
    colour = np.array([[220, 40, 40], [40, 200, 60], [50, 60, 220], [200, 200, 40]][label // 2])
    pixels = 30 + stripes[..., None] * colour * 0.8 + rng.normal(0, 25, (*size, 3))
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory):
    """train/ and val/ of 6 classes, JPEG and PNG files of various sizes: 40 and 11 images a class."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(7)
    for split, count in (("train", 40), ("val", 11)):
        for label in range(6):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                size = int(rng.integers(30, 50)), int(rng.integers(30, 50))
                Image.fromarray(draw(rng, label, size)).save(folder / f"{i:03d}.{'png' if i % 3 else 'jpg'}")
    return root


@pytest.fixture(scope="session")
def betons(image_tree, tmp_path_factory):
    """(train.beton, val.beton), written by the command."""
    folder = tmp_path_factory.mktemp("betons")
    train, val = folder / "train.beton", folder / "val.beton"
    run_command(
        "write_ffcv.py",
        f"--cfg.data_dir={image_tree}",
        f"--cfg.write_path={train}",
        "--cfg.num_workers=2",
        "--cfg.chunk_size=7",
    )
    run_command(
        "write_ffcv.py",
        f"--cfg.data_dir={image_tree}",
        "--cfg.split=val",
        f"--cfg.write_path={val}",
        f"--cfg.class_names_from={train}.json",
    )
    return train, val


SMALL = (
    "--config=rn18_configs/llc_demo.yaml",
    "--model.width=8",
    "--codes.num_bits=10",
    "--training.batch_size=24",
    "--validation.batch_size=16",
    "--codebook.epochs=8",
    "--codebook.lr_peak_epoch=1",
    "--codebook.lr=0.05",
    "--instance.epochs=5",
    "--instance.lr=0.03",
)


@pytest.fixture(scope="session")
def finished_run(betons, tmp_path_factory):
    """A run folder of both stages, trained by torchrun on two processes in seconds."""
    folder = tmp_path_factory.mktemp("runs")
    run_command(
        "train_llc.py",
        *SMALL,
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={betons[1]}",
        f"--logging.folder={folder}",
        "--logging.name=run",
        processes=2,
    )
    return folder / "run"


def trained_network(arch, num_bits, num_classes, **options):
    """A network of llc with random weights and codebook whose outputs differ from picture to picture, in evaluation mode."""
    network = Network(arch, num_bits, num_classes, **options)
    reference = (
        OriginalResNet(num_bits, num_classes)
        if arch == "resnet50"
        else resnet18(num_bits, num_classes, options.get("width", 64))
    )
    state = from_original(random_values(reference).state_dict(), "a random network")
    network.load_state_dict(state)
    return network.eval()
