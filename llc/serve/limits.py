"""Limits of requests: who may send them, how large and slow they may be, how many are worked on."""

import asyncio
import contextlib
import ipaddress
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")
Receive = Callable[[], Awaitable[Any]]

_DISCARD_SECONDS = 2  # how long the rest of a refused body is read before the connection is closed


class Refused(Exception):
    """A request that is not answered: the HTTP status and, for whoever sent it, the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"} if self.status == 503 else {}


class Work:
    """Threads for one kind of work, and a bound on the requests that may wait for them.

    A request takes a place when its body is there (`Bodies`), so that slow senders hold none.
    """

    def __init__(self, name: str, num_threads: int, most: int, seconds: float) -> None:
        """most: requests that run or wait; seconds: how long one of them may wait and run."""
        self.most, self.seconds = most, seconds
        self._pool = ThreadPoolExecutor(num_threads, f"llc-{name}")
        self._lock = threading.Lock()
        self._requests = self._calls = 0

    @property
    def num_waiting(self) -> int:
        """Requests that run or wait."""
        return self._requests

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place for a request. Raises Refused (503) if all are taken, or still at work after a 503."""
        with self._lock:
            self._check()
            self._requests += 1
        try:
            yield
        finally:
            with self._lock:
                self._requests -= 1

    def check(self) -> None:
        """Raises Refused (503) if `place` would."""
        with self._lock:
            self._check()

    def _check(self) -> None:
        if max(self._requests, self._calls) >= self.most:
            raise Refused(503, f"the server is busy: {self.most} requests are waiting; try again later")

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """function(*arguments) in a thread. Raises Refused (503) if it takes too long.

        A thread cannot be stopped, so a call that takes too long still counts until it ends. One that was
        waiting for a thread is dropped.
        """
        with self._lock:
            self._calls += 1
        future = self._pool.submit(function, *arguments)
        future.add_done_callback(self._ended)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.seconds)
        except asyncio.TimeoutError:
            raise Refused(503, f"this took longer than {self.seconds:g} seconds") from None

    def _ended(self, _: Future) -> None:
        with self._lock:
            self._calls -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class Bodies:
    """Reads the bodies of requests of one kind, within bounds on their number and on their bytes together.

    Where there is no room for another, the one that has been arriving for longest is given up. So senders
    that are slow on purpose keep out nobody whose body arrives quickly. All of it is for one event loop.
    """

    def __init__(self, most: int, max_bytes: int, seconds: float, too_large: str = "") -> None:
        """most: bodies at a time, of up to max_bytes each; seconds: how long one may take to arrive.

        too_large: what the sender of a larger one is told, if max_bytes is not what --max_bytes says.
        """
        self.most, self.max_bytes, self.seconds = most, max_bytes, seconds
        self._too_large = too_large or f"the body is larger than {max_bytes:,} bytes (--max_bytes)"
        self._arriving: dict[asyncio.Future[bytes | None], None] = {}  # in the order in which they began

    async def read(self, receive: Receive, declared: str | None) -> bytes:
        """The body of a request that ASGI's `receive` gives. declared: its Content-Length, if it has one.

        Raises Refused: 413 if it is larger than max_bytes, 408 if it takes longer than `seconds`, 503 if it
        was given up for others, 400 if its sender goes away.
        """
        if (
            declared is None or int(declared) <= self.max_bytes
        ):  # the protocol has checked that it is a number
            body = await self._arrived(receive)
            if body is not None:
                return body
        # Many clients look at the answer only when they have sent everything, so some more is read.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_read(receive, 4 * self.max_bytes, None), _DISCARD_SECONDS)
        raise Refused(413, self._too_large)

    async def _arrived(self, receive: Receive) -> bytes | None:
        """The body; None if it is too large."""
        while len(self._arriving) >= self.most:
            oldest = next(iter(self._arriving))
            del self._arriving[oldest]
            oldest.cancel()
        reading = asyncio.ensure_future(_read(receive, self.max_bytes, bytearray()))
        self._arriving[reading] = None
        try:
            return await asyncio.wait_for(reading, self.seconds)
        except asyncio.TimeoutError:
            raise Refused(408, f"the body took longer than {self.seconds:g} seconds (--timeout)") from None
        except asyncio.CancelledError:
            if reading in self._arriving:  # not by us
                raise
            raise Refused(
                503, f"the server is busy: {self.most} newer bodies are arriving; try again later"
            ) from None
        finally:
            self._arriving.pop(reading, None)


async def _read(receive: Receive, max_bytes: int, body: bytearray | None) -> bytes | None:
    """Reads a body, into `body` or into nothing, and returns it. None: it is larger than max_bytes."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "the sender went away")
        size, more = size + len(message["body"]), message["more_body"]
        if size > max_bytes:
            return None
        if body is not None:
            body += message["body"]
    return None if body is None else bytes(body)


def check_sender(headers: dict[str, str], allowed_hosts: Collection[str]) -> None:
    """Raises Refused for a request that a page of another site may have made a browser send.

    headers: by lower-case name. A page can point a name of its own at this machine (DNS rebinding), and then
    read the answers; so Host must be an IP address, localhost, or one of `allowed_hosts`.
    """
    host = headers.get("host", "")
    name = _host_name(host)
    if not _is_address(name) and name not in ("localhost", *allowed_hosts):
        raise Refused(
            421,
            f"this server is not known as {name[:80]!r}: use its IP address, or start it with "
            f"--allowed_hosts={name[:80]}",
        )
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise Refused(403, f"pages of {origin[:80]!r} may not use this server")
    if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
        raise Refused(403, "pages of other sites may not use this server")


def _host_name(host: str) -> str:
    """Host without its port, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
