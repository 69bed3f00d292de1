"""Processes that import llc from a given folder, for `python -m llc.benchmark hamming`.

Every process runs llc/benchmark/_hamming_ours.py of this version, whichever llc it imports.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import llc
from llc.benchmark import _hamming_ours
from llc.errors import UserError

THIS_VERSION = Path(llc.__file__).resolve().parents[1]  # the folder that this llc was imported from

_SERVE = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
runpy.run_path(sys.argv[2])["serve"]()
"""

_FIRST = """
import json, runpy, sys, time
sys.path.insert(0, sys.argv[1])
request = json.loads(sys.argv[3])
clock = time.process_time if request["clock"]["cpu_time"] else time.perf_counter
start = clock()
import llc.codes, llc.hamming
imported = clock() - start
print(json.dumps([imported, *runpy.run_path(sys.argv[2])["first"](request)]))
"""


class OtherVersion:
    """Another version of llc, in a process that computes only while it is asked to."""

    def __init__(self, folder):
        """Raises UserError if there is no llc in the folder."""
        self.folder = Path(folder).resolve()
        if not (self.folder / "llc" / "__init__.py").is_file():
            raise UserError(f"--beside={folder}: expected a folder that holds llc, as a checkout does")
        self._process = subprocess.Popen(
            _command(_SERVE, self.folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        file = Path(self._answer())
        if not file.resolve().is_relative_to(self.folder):
            self.close()
            raise UserError(f"--beside={folder}: its process imported {file} instead")

    def prepare(self, case, clock, threads):
        """Makes the codes of a case and calls each way once -> {name of the way: digest of its result}."""
        return self._ask({**_request(case, clock, threads)})

    def seconds_a_call(self, name):
        """The time that this way takes now."""
        return self._ask({"time": name})

    def close(self):
        self._process.kill()
        self._process.communicate()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _ask(self, request):
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it has ended, so there is no answer either
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise UserError(
                f"--beside={self.folder}: its process ended with status {self._process.wait()}; "
                "its messages are above"
            )
        return json.loads(line)


def first_call(folder, case, clock, threads):
    """Seconds that a new process takes to import llc, to call it first, and to call it again.

    Raises UserError if the process fails.
    """
    command = _command(_FIRST, folder)
    done = subprocess.run(
        [*command, json.dumps(_request(case, clock, threads))], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise UserError(
            f"a process with llc of {folder} ended with status {done.returncode}; its messages are above"
        )
    return json.loads(done.stdout.splitlines()[-1])  # before it stands what libraries print


def _command(program, folder):
    return [sys.executable, "-c", program, str(folder), _hamming_ours.__file__]


def _request(case, clock, threads):
    return {"case": dataclasses.asdict(case), "clock": dataclasses.asdict(clock), "threads": threads}
