"""python -m llc.doctor: what it says of a machine, and that nothing that is broken ends it."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from llc import environment, native
from llc.doctor import __main__ as doctor
from llc.doctor import disk, finding, machine, software
from llc.doctor.finding import ERROR, NOTE, OK, WARNING, apart, guarded
from llc.errors import UserError
from tests.waiting import seconds

NAMES = (
    "python packages known_pairs torch torchvision cuda_libraries native_library libjpeg driver gpus "
    "compiler cpu memory shared_memory disk_space file_system disk_speed recipe variables open_files "
    "locked_memory encoding"
).split()


@pytest.fixture
def here(monkeypatch):
    """All checks in this process, and a disk that reads 500 MB/s."""
    monkeypatch.setattr(
        doctor,
        "apart",
        lambda module, names: (guarded(name, sys.modules[module].CHECKS[name]) for name in names),
    )
    monkeypatch.setattr(disk, "measure", lambda folder: (500e6, "as the test says"))


def doctored(capsys, *words):
    """({check: finding}, exit status) of --json."""
    status = 0
    try:
        doctor.main([*words, "--json"])
    except SystemExit as end:
        status = end.code
    listed = json.loads(capsys.readouterr().out)
    assert all(list(entry) == ["check", "status", "found", "advice"] for entry in listed)
    assert all(entry["status"] in finding.STATUSES for entry in listed)
    return {entry["check"]: SimpleNamespace(**entry) for entry in listed}, status


# ---- the command


def test_a_broken_native_library_is_an_error_and_all_else_is_still_checked(tmp_path):
    """As a user runs it: the library is garbage."""
    (tmp_path / "garbage.so").write_text("no library")
    words = [sys.executable, "-m", "llc.doctor", str(tmp_path), "--json"]
    env = {**os.environ, "LLC_NATIVE_LIBRARY": str(tmp_path / "garbage.so")}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=seconds(120))
    assert done.returncode == 1, done.stderr
    assert not done.stderr
    found = {entry["check"]: entry for entry in json.loads(done.stdout)}
    assert [name for name in found if not name.startswith("extra_")] == NAMES
    native = found["native_library"]
    assert native["status"] == ERROR and str(tmp_path / "garbage.so") in native["found"]
    assert "pip install -e ." in native["found"]
    assert found["libjpeg"]["found"].startswith("could not be determined")
    assert torch.__version__ in found["torch"]["found"]
    assert "cores allowed" in found["cpu"]["found"] and "kernels unknown" in found["cpu"]["found"]
    assert "MB/s" in found["disk_speed"]["found"] and str(tmp_path) in found["disk_space"]["found"]
    assert not list(tmp_path.glob(".llc-doctor*"))


def test_the_start_imports_nothing_that_may_be_broken():
    code = (
        "import sys, llc.doctor.__main__ as doctor; print({'torch', 'numpy', 'llc.native'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds(60))
    assert done.stdout.strip() == "set()"


def test_a_line_for_each_check_and_the_status(here, capsys, monkeypatch, tmp_path):
    doctor.main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[: len(NAMES)]] == NAMES
    assert all(line.split()[0] in finding.STATUSES for line in lines[:-1])
    assert lines[-1].startswith("0 errors")
    monkeypatch.setattr(software, "installed", lambda package: None)
    found, status = doctored(capsys, str(tmp_path))
    assert status == 1 and found["packages"].status == ERROR and "missing: torch" in found["packages"].found
    assert (
        found["extra_wandb"].status == NOTE and "pip install 'llcodes[wandb]'" in found["extra_wandb"].advice
    )
    assert not any(name in found for name in ("extra_test", "extra_docs"))


def test_every_check_that_fails_is_said_to_have_failed(here, capsys, monkeypatch):
    def broken(*arguments):
        raise SystemExit("no such thing\nand more")

    for module in (software, machine, disk):
        for name, value in list(vars(module).items()):
            if (
                callable(value)
                and getattr(value, "__module__", "") == module.__name__
                and name in (*NAMES, *("needed_packages", "bad_pairs", "space", "speed", "recipe_needs"))
            ):
                monkeypatch.setattr(module, name, broken)
    monkeypatch.setattr(machine, "CHECKS", dict.fromkeys(machine.CHECKS, broken))
    found, status = doctored(capsys)
    assert status == 0
    assert {found[name].found for name in NAMES} == {"could not be determined: SystemExit: no such thing"}


def test_a_check_that_ends_its_process_does_not_end_the_others(tmp_path, monkeypatch):
    """A package whose import crashes, prints, or raises something odd."""
    (tmp_path / "crashing.py").write_text(
        "import os, signal\n"
        "def crash(): os.kill(os.getpid(), signal.SIGSEGV)\n"
        "def noise(): print('{\"check\": 3}\\nhello'); return 'ok', 'fine', ''\n"
        "def leave(): os._exit(7)\n"
        "CHECKS = {'first': noise, 'crash': crash, 'leave': leave, 'last': noise}\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    found = list(apart("crashing", ["first", "crash", "leave", "last"]))
    assert [f.check for f in found] == ["first", "crash", "leave", "last"]
    assert [f.status for f in found] == [OK, ERROR, ERROR, OK]
    assert "signal 11" in found[1].found and "status 7" in found[2].found


# ---- software


@pytest.mark.parametrize(
    "versions, said",
    [
        ({"torch": "2.14.1+cu130", "torchvision": "0.28.0"}, "torch 2.14 needs torchvision 0.29"),
        ({"torch": "2.11.0", "torchvision": "0.26.0"}, None),
        ({"torch": "2.11.0", "torchvision": "1.26.0"}, "needs torchvision 0.26"),
        ({"fastargs": "1.2.0"}, "terminaltables"),
        ({"fastargs": "1.2.0", "terminaltables": "3.1.10"}, None),
        ({"numba": "0.59.1", "numpy": "2.0.0"}, "numba below 0.60"),
        ({"numba": "0.60.0", "numpy": "2.0.0"}, None),
        ({"numba": "0.68.1", "numpy": "9.0.0"}, "this numba needs numpy below"),
        ({"ffcv": "1.0.2", "numba": "0.60.0"}, "opencv-python"),
        ({"ffcv": "1.0.2", "numba": "0.60.0", "opencv-python-headless": "4.8"}, None),
        ({"llc": "0.1"}, "another project"),
        ({}, None),
    ],
)
def test_pairs_that_do_not_work_together(versions, said, monkeypatch):
    monkeypatch.setattr(software, "installed", versions.get)
    status, found, advice = software.bad_pairs()
    assert status == (ERROR if said else OK)
    assert (said or "no versions") in found
    assert bool(said) == advice.startswith("pip ")


def test_packages_that_are_too_old(monkeypatch):
    versions = {name: "99.0" for name in software.requirements()[""]} | {"numpy": "1.26.4"}
    monkeypatch.setattr(software, "installed", versions.get)
    status, found, _ = software.needed_packages()
    assert status == ERROR and "missing: numpy 2.0 or newer" in found


def test_a_torchvision_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    status, found, advice = software.torchvision()
    assert status == ERROR and "cannot be imported" in found and "pip install --upgrade torch" in advice


@pytest.mark.parametrize("version, status", [((3, 9, 2), ERROR), ((3, 10, 0), OK), ((3, 14, 0), NOTE)])
def test_python(version, status, monkeypatch):
    monkeypatch.setattr(sys, "version_info", version)
    assert software.python()[0] == status


# ---- GPUs


@pytest.mark.parametrize(
    "cuda, driver, status, said",
    [
        ("13.0", "580.65.06", OK, "new enough for CUDA 13.0"),
        ("13.0", "570.86.10", ERROR, "570.86.10 is too old for CUDA 13.0, which needs 580"),
        ("12.8", "525.60.13", OK, "new enough"),
        ("12.8", "525.60.12", ERROR, "too old"),
        (None, "580.65.06", WARNING, "built without CUDA"),
        ("13.0", None, NOTE, "no nvidia-smi"),
    ],
)
def test_drivers(cuda, driver, status, said, monkeypatch):
    monkeypatch.setattr(machine, "nvidia_smi", lambda: driver and [("NVIDIA H100", driver)])
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found = machine.driver()
    assert found[0] == status and said in found[1]


def test_gpus_that_work_are_full_or_have_no_kernels(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (70e9, 80e9))
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size))
    status, found, _ = machine.gpus()
    assert status == OK and found.count("compute capability 9.0, 70.0 of 80.0 GB free") == 2

    def fails(*size, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch, "ones", fails)
    status, found, advice = machine.gpus()
    assert status == ERROR and "no kernel image" in found and "built for sm_80" in advice

    def full(*size, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "ones", full)
    assert "the GPU's memory is full" in machine.gpus()[1]


# ---- CPU, memory, limits


def test_cores_memory_and_shared_memory_that_are_limited(monkeypatch):
    texts = {"cpu.max": ["max 100000", "150000 100000"], "memory.max": ["max", "2000000000"]}
    monkeypatch.setattr(machine, "_cgroup_files", lambda name, v1: texts[name])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    status, found, advice = machine.cpu()
    assert status == WARNING and "8 of" in found and "the time of 1.5" in found and "taskset -c 0-0" in advice
    status, found, _ = machine.memory()
    assert status == WARNING and "a cgroup allows 2.0 GB" in found
    monkeypatch.setattr(machine, "_cgroup_files", lambda name, v1: [])
    assert machine.cpu()[0] == OK and machine.memory_limit() is None
    monkeypatch.setattr(
        machine.shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 26, free=1 << 26)
    )
    status, found, advice = machine.shared_memory()
    assert status == WARNING and "0.07 GB" in found and "--ipc=host" in advice


def test_variables_that_change_how_llc_runs(monkeypatch):
    monkeypatch.setattr(environment, "values", lambda names: {"OMP_NUM_THREADS": "2"})
    assert machine.variables() == (OK, "OMP_NUM_THREADS=2", "")
    monkeypatch.setattr(environment, "values", lambda names: {"CUDA_LAUNCH_BLOCKING": "1"})
    status, _, advice = machine.variables()
    assert status == WARNING and "CUDA_LAUNCH_BLOCKING makes every kernel wait" in advice
    assert not any(word in name for name in machine._VARIABLES for word in ("KEY", "TOKEN", "URI"))


def test_open_files_and_letters(monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (256, 4096))
    assert machine.open_files() == (WARNING, "256", "Datasets of many shards need more: ulimit -n 4096")
    assert machine.locked_memory()[0] == NOTE
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert machine.encoding()[0] == WARNING


# ---- the disk


def test_reading_speed_is_of_what_was_read(tmp_path, monkeypatch):
    """Of a beton that is large enough, else of a temporary file, which is removed; on a tmpfs too."""
    monkeypatch.setattr(disk, "_WRITTEN_BYTES", 1 << 24)
    monkeypatch.setattr(disk, "_SMALL_BETON", 1 << 20)
    clock = iter(range(1000))
    monkeypatch.setattr(disk.time, "perf_counter", lambda: next(clock) / 10)
    measure = disk.measure.__wrapped__
    rate, what = measure(tmp_path)
    # asked once before each of two chunks, once more before the end of the file, and at the end
    assert rate == pytest.approx((1 << 24) / 0.4) and "a temporary file (17 MB)" in what
    assert not list(tmp_path.iterdir())
    (tmp_path / "train.beton").write_bytes(bytes(3 << 20))
    rate, what = measure(tmp_path)
    assert rate == pytest.approx((3 << 20) / 0.2) and "read from train.beton (3 MB)" in what

    real = os.open

    def refused(path, flags, *more):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", refused)
    assert "as far as the file system does that" in measure(tmp_path)[1]


def test_a_full_disk_is_not_filled_further(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(total=1e9, free=1e8))
    found = guarded("disk_speed", lambda: disk.speed(tmp_path))
    assert (
        found.status == WARNING
        and "could not be determined: OSError: less than 537 MB are free" in found.found
    )
    assert disk.space(tmp_path)[0] == WARNING
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "it cannot be written to" in disk.space(tmp_path)[1]


def test_what_a_recipe_needs_of_a_disk(here, betons, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "memory_bytes", lambda: (64e9, 60e9))
    monkeypatch.setattr(disk, "memory_limit", lambda: None)
    # ImageNet as half JPEG, half pixels: 343 GB, which is more than memory
    status, found, advice = disk.recipe_needs(tmp_path, [], 1, 0)
    assert (
        status == WARNING
        and "3,000 images/s x 268 KB of ImageNet = 804 MB/s; the disk reads 500 MB/s" in found
    )
    assert "11 min" in advice and "343 GB do not fit" in advice
    assert disk.recipe_needs(tmp_path, [], 1, 1000)[0] == OK  # 268 MB/s
    assert "24,000 images/s" in disk.recipe_needs(tmp_path, [], 8, 0)[1]
    words = ["--config=rn18_configs/llc_demo.yaml", f"--data.train_dataset={betons[0]}"]
    size = (
        betons[0].stat().st_size
        / json.loads((betons[0].parent / "train.beton.json").read_text())["num_samples"]
    )
    fast = int(2 * 500e6 / size)
    status, found, advice = disk.recipe_needs(tmp_path, words, 1, fast)
    assert status == NOTE and f"x {size / 1e3:,.0f} KB in {betons[0]} = 1,000 MB/s" in found
    assert "The first epoch takes" in advice
    assert "(the recipe names no betons)" in disk.recipe_needs(tmp_path, words[:1], 1, 0)[1]
    assert "is not there" in disk.recipe_needs(tmp_path, [words[0], "--data.train_dataset=no.beton"], 1, 0)[1]
    assert "no GPU" in disk.recipe_needs(tmp_path, [], 0, 0)[1]
    alone = ["--data.train_dataset=no.beton"]
    assert "(no.beton is not there)" in disk.recipe_needs(tmp_path, alone, 0, 0)[1]
    for words, message in (
        (["--data.x=1"], "is not a key"),
        (["--config=no.yaml"], "no.yaml: cannot be read"),
    ):
        status, found, _ = disk.recipe_needs(tmp_path, words, 0, 0)
        assert status == ERROR and message in found


def test_the_words_of_a_recipe_are_told_from_the_doctors_own():
    words = (
        "/betons --config rn.yaml --data.train_dataset=a --json --config=b.yaml --images_per_second=3".split()
    )
    own, recipe = doctor.split(words)
    assert own == ["/betons", "--json", "--images_per_second=3"]
    assert recipe == ["--config", "rn.yaml", "--data.train_dataset=a", "--config=b.yaml"]


def test_the_mount_of_a_folder(tmp_path):
    inside = tmp_path / "a b" / "c"
    inside.mkdir(parents=True)
    escaped = str(tmp_path / "a b").replace(" ", "\\040")
    mounts = f"/dev/sda / ext4 rw 0 0\nserver:/x {escaped} nfs4 rw 0 0\nnone {tmp_path}/a tmpfs rw 0 0\n"
    assert disk.mount_of(inside, mounts) == (str(tmp_path / "a b"), "nfs4")
    assert disk.mount_of("/etc", mounts) == ("/", "ext4")


def test_the_libjpeg_is_the_native_librarys_and_not_pillows():
    import PIL._imaging  # noqa: F401 (brings a libjpeg of its own into the process)

    status, found, _ = software.libjpeg()
    linked = subprocess.run(["ldd", native._PATH], capture_output=True, text=True, check=True).stdout
    [path] = [line.split()[2] for line in linked.splitlines() if "libjpeg" in line]
    assert status == finding.OK and os.path.realpath(path) == os.path.realpath(found.split(", ")[1])


@pytest.mark.parametrize("name, message", [("none", "does not exist"), ("file", "is not a folder")])
def test_another_folder_is_not_measured_instead(name, message, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        doctor.main([str(tmp_path / name)])
