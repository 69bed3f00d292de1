"""uvicorn, with a bound on connections and on how long they may be idle, and plain errors at the start.

It imports uvicorn, which the extra `serve` brings; llc.serve.__main__ says so where it is missing.
"""

import asyncio
import functools
import json
import signal
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from llc.errors import UserError

_SHUTDOWN_SECONDS = 5  # for requests that are at work when the server is stopped


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError, such as for a port that is taken."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"--host={host}: there is no such address: {error}") from error
    family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)  # localhost: 127.0.0.1
    try:
        return socket.create_server(address, family=family)
    except OSError as error:
        raise UserError(
            f"--host={host} --port={port}: cannot listen there: {error.strerror}; --port=0 takes a free port"
        ) from error


def url_of(listener: socket.socket) -> str:
    """The address of a listening socket, for a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: Any, listener: socket.socket, *, max_connections: int, seconds: float) -> None:
    """Serves until Ctrl-C or SIGTERM, then lets requests that are at work finish for a few seconds.

    seconds: how long a connection may be idle, send the head of a request, or not read its answer.
    """
    protocol: Any = functools.partial(_Connection, max_connections=max_connections, seconds=seconds)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        loop="asyncio",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    # uvicorn raises the signal that has stopped it again.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


class _Connection(H11Protocol):
    """uvicorn's connection, which is closed when nothing moves on it.

    uvicorn itself waits for ever for the rest of a request's head, and for a client to read its answer.
    """

    def __init__(self, *arguments: Any, max_connections: int, seconds: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._max_connections, self._seconds = max_connections, seconds
        self._idle_since = self.loop.time()
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # An answer is two writes. Without this the second waits for the client to confirm the first, 40 ms.
        # asyncio does it only where the socket names its protocol, which those of create_server do not.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self._max_connections:
            transport.write(_plain(503, "Service Unavailable", "too many connections"))
            transport.close()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self.transport.write(_plain(400, "Bad Request", msg))
        self.transport.close()

    def _look(self) -> None:
        at_work = self.cycle is not None and not self.cycle.response_complete
        if at_work and not self.flow.write_paused:  # the application limits this time itself
            self._idle_since = self.loop.time()
        elif self.loop.time() - self._idle_since > self._seconds:
            self.transport.abort()
        self._watch = self.loop.call_later(min(1.0, self._seconds / 4), self._look)


def _plain(status: int, phrase: str, reason: str) -> bytes:
    """A whole response with the error as JSON."""
    body = json.dumps({"error": reason}).encode()
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
