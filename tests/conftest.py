"""Real image files and real command lines, small."""

import contextlib
import fcntl
import importlib
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

# OpenMP reads this when torch is imported, here and in the processes that tests start. Its threads would
# otherwise spin while they wait for each other, which beside other tests costs ten times the computation.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

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

from llc import config
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
    "test_itq.py",
    "test_montage.py",
    "test_manifest.py",
    "test_network.py",
    "test_plugins.py",
    "test_progress.py",
    "test_sampling.py",
    "test_schedules.py",
    "test_setup.py",
    "test_stages.py",
}
# Files that take longest, which pytest-xdist starts first, so that no process works alone at the end.
LONGEST = (
    "tests/serve/test_server.py",
    "tests/training/test_survival.py",
    "tests/test_commands.py",
    "tests/compare/test_compare.py",
    "tests/test_gpu_command.py",
    "tests/hamming/test_kernels_compiled.py",
    "tests/hamming/test_triton.py",
    "tests/data/test_writer.py",
    "tests/index/test_storage.py",
    "tests/index/test_images.py",
    "tests/test_encoder.py",
    "tests/benchmark/test_epoch.py",
    "tests/docs/test_how_to.py",
    "tests/docs/test_tutorials.py",
    "tests/test_wheel.py",
    "tests/docs/test_explanation.py",
    "tests/test_extending.py",
    "tests/test_backbones.py",
    "tests/benchmark/test_loader.py",
    "tests/benchmark/test_writer.py",
    "tests/docs/test_start.py",
)


def pytest_collection_modifyitems(items):
    places = {ROOT / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))
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


@pytest.fixture(autouse=True)
def beside_other_tests(request, tmp_path_factory):
    """Among several processes of pytest-xdist, runs a test marked `alone` while no other test runs."""
    if not hasattr(request.config, "workerinput"):
        yield
        return
    folder = tmp_path_factory.getbasetemp().parent  # the processes have theirs beside each other
    with open(folder / "entrance.lock", "w") as entrance, open(folder / "room.lock", "w") as room:
        # whoever waits to be alone keeps the entrance, so that nobody enters before
        fcntl.flock(entrance, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(entrance, fcntl.LOCK_UN)
        yield
        fcntl.flock(room, fcntl.LOCK_UN)  # here, because forked processes may hold the file open


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


@pytest.fixture
def call_llc(monkeypatch):
    """call_llc(*words, check=True): like run_llc, but within this process.

    Python and torch take seconds to start, so a test of what a command does or says calls it here. A test
    with --plugin needs run_llc, because a plugin stays in the process that has loaded it.
    """

    def call(*words, check=True):
        name, *arguments = map(str, words)
        if name == "-m":
            name, *arguments = arguments
        module = importlib.import_module(name.removesuffix(".py"))
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{name}.__main__")
        status, output, errors = 0, io.StringIO(), io.StringIO()
        with (
            monkeypatch.context() as patch,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            patch.setattr(sys, "argv", [name, *arguments])
            patch.chdir(ROOT)
            try:
                config.run(module.main)
            except SystemExit as end:
                status = end.code or 0
        done = subprocess.CompletedProcess(words, status, output.getvalue(), errors.getvalue())
        assert not check or status == 0, done.stdout + done.stderr
        return done

    return call


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, pytestconfig):
    """made_once(name, make): the folder of that name, which make(folder) fills.

    Processes of pytest-xdist share it: the first that asks makes it, and the others wait for it.
    """
    root = tmp_path_factory.getbasetemp()
    if hasattr(pytestconfig, "workerinput"):  # one of several processes, whose folders are beside each other
        root = root.parent

    def folder_of(name, make):
        folder, done = root / name, root / f"{name}.done"
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


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
def betons(image_tree, made_once):
    """(train.beton, val.beton), written by the command."""

    def write(folder):
        run_command(
            "write_ffcv.py",
            f"--cfg.data_dir={image_tree}",
            f"--cfg.write_path={folder / 'train.beton'}",
            "--cfg.num_workers=2",
            "--cfg.chunk_size=7",
        )
        run_command(
            "write_ffcv.py",
            f"--cfg.data_dir={image_tree}",
            "--cfg.split=val",
            f"--cfg.write_path={folder / 'val.beton'}",
            f"--cfg.class_names_from={folder / 'train.beton'}.json",
        )

    folder = made_once("betons", write)
    return folder / "train.beton", folder / "val.beton"


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
def finished_run(betons, made_once):
    """A run folder of both stages, trained by torchrun on two processes in seconds."""

    def train(folder):
        run_command(
            "train_llc.py",
            *SMALL,
            f"--data.train_dataset={betons[0]}",
            f"--data.val_dataset={betons[1]}",
            f"--logging.folder={folder}",
            "--logging.name=run",
            processes=2,
        )

    return made_once("runs", train) / "run"


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
