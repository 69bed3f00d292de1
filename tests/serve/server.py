"""A server in a process of its own, and a client that says what it sends byte by byte."""

import contextlib
import dataclasses
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT
from tests.waiting import seconds


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self):
        return json.loads(self.data)


class Server:
    """A running `python -m llc.serve`."""

    def __init__(self, process, log):
        self.process, self.log = process, log
        end = time.monotonic() + seconds(120)
        while "Ctrl-C stops" not in self.said:
            assert process.poll() is None, self.said
            assert time.monotonic() < end, f"the server did not start: {self.said}"
            time.sleep(0.05)
        self.url = next(line for line in self.said.splitlines() if line.startswith("http://")).split()[0]
        self.port = int(self.url.rpartition(":")[2])

    @property
    def said(self):
        return Path(self.log).read_text()

    def connect(self):
        """A connection without HTTP."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=seconds(30))

    def ask(self, method, path, body=None, headers=None, *, connection=None):
        """One request, on a connection of its own if none is given."""
        mine = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds(60))
        try:
            if isinstance(body, dict):
                body, headers = json.dumps(body), {"Content-Type": "application/json", **(headers or {})}
            mine.request(method, path, body, headers or {})
            response = mine.getresponse()
            found = {key.lower(): value for key, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            if connection is None:
                mine.close()

    def get(self, path, **headers):
        return self.ask("GET", path, headers={key.replace("_", "-"): value for key, value in headers.items()})

    def post(self, path, body, headers=None, **named):
        return self.ask("POST", path, body, headers, **named)

    def search(self, body, query="", **named):
        """The answer of /search as JSON."""
        answer = self.post(f"/search?{query}", body, **named)
        assert answer.status == 200, answer.data
        return answer.json

    def stop(self, number=signal.SIGTERM):
        """Stops it as a user does; returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds(30))


@contextlib.contextmanager
def serving(index, folder, *flags):
    """A server of an index until the end of the block, which fails if it has printed a traceback."""
    log = folder / f"server-{time.monotonic_ns()}.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "llc.serve", str(index), "--port=0", *flags],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            server = Server(process, log)
            yield server
            if process.poll() is None:
                assert server.stop() == 0, server.said
                assert server.said.endswith("stopped\n"), server.said
            assert "Traceback" not in server.said, server.said
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def pairs(answer):
    """(distance, id) of the neighbours of an answer."""
    return [(found["distance"], found["id"]) for found in answer["neighbours"]]


def expected(index, code, k, **named):
    """The same of an index's own answer, without what pads it."""
    distances, ids = index.search(code, k, **named)
    return [(d, i) for d, i in zip(distances[0].tolist(), ids[0].tolist()) if i >= 0]


def hold(server, length=100):
    """A connection whose request is at work: the server has asked for the body, of which there is nothing."""
    connection = server.connect()
    connection.sendall(
        b"POST /search HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        b"Content-Length: %d\r\n\r\n" % length
    )
    assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    return connection


def receive_all(connection):
    """What comes until the other side closes the connection."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            data += part
    return data
