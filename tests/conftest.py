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
from PIL import Image

if not torch.cuda.is_available():
    # Triton reads this variable when it is imported, which much of torch does, and again when a kernel is
    # made. So Triton and all kernels of llc are imported here, before any test, whatever the order of the
    # tests.
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ImportError):
        patch.setenv("TRITON_INTERPRET", "1")
        import triton  # noqa: F401

        import llc.hamming.cuda
        import llc.hamming.cuda_table
        import llc.kernels.pack_cuda  # noqa: F401

from llc.checkpoints import from_original
from llc.network import Network
from tests.original import OriginalResNet, random_values, resnet18
from tests.waiting import seconds

# no deadline, because a first call may compile a kernel; the phase "explain" would trace that for minutes
settings.register_profile("llc", deadline=None, phases=set(Phase) - {Phase.explain})
settings.load_profile("llc")


ROOT = Path(__file__).resolve().parent.parent

# Fixtures that start processes or train. A test that uses one is not quick, whatever file it is in.
SLOW_FIXTURES = {"run_llc", "betons", "finished_run", "write_ffcv", "start_write_ffcv"}
# Files and folders whose tests are quick: pure functions, small inputs. `make check` runs them.
QUICK = {
    "evaluation",
    "test_codebook.py",
    "test_codes.py",
    "test_config.py",
    "test_decoders.py",
    "test_isolation.py",
    "test_manifest.py",
    "test_network.py",
    "test_plugins.py",
    "test_progress.py",
    "test_sampling.py",
    "test_schedules.py",
    "test_setup.py",
    "test_stages.py",
}


def pytest_collection_modifyitems(items):
    for item in items:
        if QUICK & {item.path.name, item.path.parent.name} and not SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker(pytest.mark.quick)


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_interrupts():
    """Lets processes that tests start be interrupted: they would ignore Ctrl-C as a background job does."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def nothing_is_left_changed(ctrl_c_interrupts):
    """Fails a test that leaves SIGINT's handler or TRITON_INTERPRET changed, and restores them."""
    handler, interpret = signal.getsignal(signal.SIGINT), os.environ.get("TRITON_INTERPRET")
    yield
    changed = []
    if signal.getsignal(signal.SIGINT) is not handler:
        signal.signal(signal.SIGINT, handler)
        changed.append("the handler of SIGINT")
    if os.environ.get("TRITON_INTERPRET") != interpret:
        os.environ.pop("TRITON_INTERPRET", None)
        if interpret is not None:
            os.environ["TRITON_INTERPRET"] = interpret
        changed.append("TRITON_INTERPRET")
    assert not changed, f"this test left {' and '.join(changed)} changed"


def run_command(*words, processes=None, check=True, timeout=240):
    """Runs `python WORDS`, or `torchrun --nproc_per_node=processes WORDS`, in a process of its own.

    timeout: seconds, before LLC_TEST_PATIENCE stretches them. check: whether a failing command fails the
    test.
    """
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
        timeout=seconds(timeout),
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def run_llc():
    return run_command


def draw(rng, label, size=(40, 36)):
    """A noisy image of stripes, whose direction and colour are its class."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    stripes = ((rows if label % 2 else columns) // 5) % 2
    colour = np.array([[220, 40, 40], [40, 200, 60], [50, 60, 220], [200, 200, 40]][label // 2])
    pixels = 30 + stripes[..., None] * colour * 0.8 + rng.normal(0, 25, (*size, 3))
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory):
    """train/ and val/ with 40 and 11 images per class, 6 classes; JPEG and PNG of various sizes."""
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
    """A network in evaluation mode with random weights and codebook, whose outputs differ between images."""
    network = Network(arch, num_bits, num_classes, **options)
    reference = (
        OriginalResNet(num_bits, num_classes)
        if arch == "resnet50"
        else resnet18(num_bits, num_classes, options.get("width", 64))
    )
    state = from_original(random_values(reference).state_dict(), "a random network")
    network.load_state_dict(state)
    return network.eval()
