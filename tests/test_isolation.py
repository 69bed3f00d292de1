"""tests/conftest.py: no test leaves SIGINT's handler or TRITON_INTERPRET changed for the next."""

import os
import signal
import subprocess
import sys

from tests.conftest import ROOT
from tests.waiting import seconds

TESTS = """
import os, signal

INTERPRET = os.environ.get("TRITON_INTERPRET")
HANDLER = []

def test_a():
    HANDLER.append(signal.getsignal(signal.SIGINT))
    assert callable(HANDLER[0])  # it is not ignored

def test_b():
    os.environ["TRITON_INTERPRET"] = "0"
    signal.signal(signal.SIGINT, signal.SIG_DFL)

def test_c():
    assert os.environ.get("TRITON_INTERPRET") == INTERPRET == EXPECTED
    assert signal.getsignal(signal.SIGINT) is HANDLER[0]
"""


def test_what_a_test_changes_is_put_back_and_it_fails(tmp_path):
    for value in (None, "1"):
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment |= {} if value is None else {"TRITON_INTERPRET": value}
        (tmp_path / "test_changes.py").write_text(f"EXPECTED = {value!r}\n{TESTS}")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]
            + [f"--rootdir={tmp_path}", str(tmp_path / "test_changes.py")],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=seconds(120),
            # as in a shell's background job
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )
        assert "3 passed, 1 error" in done.stdout, done.stdout + done.stderr
        assert "this test left the handler of SIGINT and TRITON_INTERPRET changed" in done.stdout
