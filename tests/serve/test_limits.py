"""What the server gives at most: to large, slow and many requests, and to work that takes long."""

import asyncio
import socket
import threading
import time

import pytest

from llc.serve.limits import Bodies, Refused, Work
from tests.serve.server import hold, receive_all, serving
from tests.waiting import seconds

MAX_BYTES, TIMEOUT, WAITING = 5000, seconds(1.5), 2


@pytest.fixture(scope="module")
def tight(photos, tmp_path_factory):
    flags = f"--max_bytes={MAX_BYTES}", f"--timeout={TIMEOUT}", f"--max_waiting={WAITING}"
    with serving(photos.path, tmp_path_factory.mktemp("tight"), *flags) as server:
        yield server


HEAD = b"POST /search HTTP/1.1\r\nHost: localhost\r\n"


def test_large_bodies_are_refused(tight):
    assert tight.post("/search", b"x" * MAX_BYTES).status == 415
    for size in (MAX_BYTES + 1, 100 * MAX_BYTES):
        answer = tight.post("/search", b"x" * size)
        assert answer.status == 413 and f"{MAX_BYTES:,} bytes" in answer.json["error"]
    assert answer.headers["connection"] == "close"  # not all of this one was read
    json = tight.post("/search", b" " * (MAX_BYTES + 1), {"Content-Type": "application/json"})
    assert json.status == 413 and f"larger than {MAX_BYTES:,} bytes (--max_bytes)" in json.json["error"]


def test_an_announced_large_body_is_refused_before_it_is_sent(tight):
    with tight.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 999999999999\r\n\r\n")
        assert receive_all(connection).startswith(b"HTTP/1.1 413 ")


def test_an_endless_body_is_refused(tight):
    sent = 0
    with tight.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        started = time.monotonic()
        try:
            while time.monotonic() - started < seconds(30):
                connection.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
                sent += 1024
        except ConnectionError:
            pass
        assert time.monotonic() - started < seconds(20)
    assert sent < 100_000_000  # the rest of what the system's buffers take


def test_a_slow_body_is_given_up(tight):
    with tight.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n")
        for _ in range(3):
            connection.sendall(b"x")
            time.sleep(0.2)
        answer = receive_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"the body took longer than %g seconds" % TIMEOUT in answer


@pytest.mark.parametrize("sent", [b"", b"POST /search HT", HEAD, HEAD + b"X-Slow: "])
def test_a_slow_head_is_given_up(tight, sent):
    with tight.connect() as connection:
        connection.sendall(sent)
        started = time.monotonic()
        answer = b""
        while time.monotonic() - started < seconds(20):
            connection.settimeout(0.2)
            try:
                part = connection.recv(1000)
            except TimeoutError:
                if sent:
                    connection.sendall(b"x")  # now and then a byte, as such clients do
                continue
            except ConnectionError:
                break
            if not part:
                break
            answer += part
        assert time.monotonic() - started < seconds(10)
        assert answer == b""


def test_a_client_that_does_not_read_is_given_up(tight):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", tight.port))
        connection.settimeout(seconds(20))
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - started < seconds(20):
                connection.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert tight.get("/health").status == 200


@pytest.mark.parametrize(
    "request_text",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1, 2\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # TLS
    ],
    ids=lambda text: repr(text[:40]),
)
def test_what_is_not_http_gets_an_error_or_nothing(tight, request_text):
    with tight.connect() as connection:
        connection.sendall(request_text)
        answer = receive_all(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4") and b'{"error":' in answer
    assert tight.get("/health").status == 200


def test_slow_senders_keep_nobody_out(tight):
    """As many as there are places send next to nothing, and again and again. Others are answered at once."""
    holding = [hold(tight) for _ in range(WAITING)]
    for _ in range(3 * WAITING):
        started = time.monotonic()
        assert tight.post("/search", b"an image").status == 415
        assert time.monotonic() - started < TIMEOUT
        assert tight.search({"id": (1 << 53) + 1})["neighbours"]  # codes do not wait for images
        holding.append(hold(tight))
    answers = [receive_all(connection) for connection in holding]
    for connection in holding:
        connection.close()
    assert {answer[:13] for answer in answers[:-WAITING]} == {b"HTTP/1.1 503 "}
    assert b"retry-after: 1" in answers[0] and b"newer bodies are arriving" in answers[0]
    assert answers[-1].startswith(b"HTTP/1.1 408 ")


class Sender:
    """ASGI's `receive`, of pieces that come when they are put."""

    def __init__(self):
        self.pieces = asyncio.Queue()

    def put(self, data, more=True):
        self.pieces.put_nowait({"type": "http.request", "body": data, "more_body": more})

    async def receive(self):
        return await self.pieces.get()


def test_of_too_many_bodies_the_oldest_is_given_up():
    async def ask():
        bodies, senders = Bodies(most=3, max_bytes=10, seconds=60), [Sender() for _ in range(5)]
        readings = []
        for sender in senders:
            readings.append(asyncio.ensure_future(bodies.read(sender.receive, None)))
            sender.put(b"slow ")
            await asyncio.sleep(0.01)
        for reading in readings[:2]:
            with pytest.raises(Refused, match="3 newer bodies") as error:
                await reading
            assert error.value.status == 503
        assert not any(reading.done() for reading in readings[2:])
        for sender in senders[2:]:
            sender.put(b"body", more=False)
        assert [await reading for reading in readings[2:]] == [b"slow body"] * 3
        # those that have ended make room
        readings = [asyncio.ensure_future(bodies.read(Sender().receive, "5")) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert not any(reading.done() for reading in readings)
        # whoever is stopped from outside was not given up
        readings[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await readings[0]
        quick = Sender()
        quick.put(b"12345", more=False)
        assert await bodies.read(quick.receive, "5") == b"12345"
        for reading in readings[1:]:
            assert not reading.done()
            reading.cancel()

    asyncio.run(ask())


def test_only_so_many_connections_are_open(tight):
    connections = []
    try:
        for _ in range(4 * WAITING + 32 + 1):
            connections.append(tight.connect())
        answer = receive_all(connections[-1])
        assert answer.startswith(b"HTTP/1.1 503 ") and b"too many connections" in answer
    finally:
        for connection in connections:
            connection.close()
    end = time.monotonic() + seconds(10)
    while True:
        try:
            if tight.get("/health").status == 200:
                break
        except ConnectionError:
            pass
        assert time.monotonic() < end
        time.sleep(0.05)


def test_work_that_takes_long_is_given_up_and_still_counts():
    async def ask():
        work, release, ran = Work("test", num_threads=1, most=2, seconds=0.3), threading.Event(), []
        try:
            with work.place():
                assert await work.run(lambda: 7) == 7
                with pytest.raises(ValueError):
                    await work.run(int, "x")
                with pytest.raises(Refused, match="longer than 0.3 seconds") as error:
                    await work.run(release.wait)
                assert error.value.status == 503
                with pytest.raises(Refused):  # it waits behind the first, and is dropped
                    await work.run(ran.append, 1)
                work.check()
                with work.place(), pytest.raises(Refused, match="busy"):
                    with work.place():
                        pass
                with work.place(), pytest.raises(Refused, match="busy"):
                    work.check()
            futures = [asyncio.ensure_future(work.run(release.wait)) for _ in range(2)]
            await asyncio.sleep(0.05)
            with pytest.raises(Refused, match="busy"):  # nobody has a place, but the thread is at work
                with work.place():
                    pass
            release.set()
            await asyncio.gather(*futures)
            with work.place():
                assert await work.run(lambda: 8) == 8
            assert not ran
        finally:
            release.set()
            work.close()

    asyncio.run(ask())
