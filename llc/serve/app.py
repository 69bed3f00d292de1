"""The server's pages and answers: a FastAPI application made from a Service.

    app = create_app(Service(index, encoder, Thumbnails(None)), Limits())

Queries are the body of a request: an image file as it is, or JSON with a code or an id. It imports FastAPI,
which the extra `serve` brings; llc.serve.__main__ says so where it is missing.
"""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import importlib.resources
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

import llc
from llc.codes import pack_bits
from llc.errors import UserError
from llc.index.arguments import MAX_ID
from llc.serve.limits import Bodies, Refused, Work, check_sender
from llc.serve.service import Classes, Code, Neighbours, Record, Service

MAX_K = 1000
_MAX_JSON = 1 << 16  # bytes; a code of 4,096 bits has 1,024 digits
_JSON_TOO_LARGE = f"JSON may have at most {_MAX_JSON:,} bytes"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may cost, and how many there may be.

    max_bytes: of a body; max_waiting: requests of one kind (images, codes, thumbnails) that run or wait, and
    of images and codes as many again whose bodies are arriving; seconds: for a body to arrive, and again for
    the answer to be found; refresh_seconds: how often the index is looked at for what other processes have
    committed; num_threads: of each kind of work.
    """

    max_bytes: int = 20_000_000
    max_waiting: int = 32
    seconds: float = 30.0
    refresh_seconds: float = 1.0
    num_threads: int = 2
    allowed_hosts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Health:
    """status: "ok", or "stale" while answers are from an older state of the index than the newest.

    stale: why the newest state cannot be served, or null.
    """

    status: str
    stale: str | None


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a request was not answered."""

    error: str


# ---- what the documentation of the API says beside the parameters

_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_QUERY = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "description": "hexadecimal digits, two a byte"},
        "id": {"type": "integer", "description": "of the index", "minimum": 0},
    },
    "minProperties": 1,
    "maxProperties": 1,
    "example": {"id": 0},
}
_BODY = {
    "requestBody": {
        "required": True,
        "description": 'An image file as it is; or JSON: {"code": "..."} or {"id": ...}',
        "content": {
            "application/octet-stream": _PICTURE,
            "image/*": _PICTURE,
            "application/json": {"schema": _QUERY},
        },
    }
}
_FAILURES: dict[int | str, dict[str, Any]] = {
    404: {"model": Failure, "description": "no such id"},
    408: {"model": Failure, "description": "the body took too long"},
    413: {"model": Failure, "description": "the body or the image is too large"},
    415: {"model": Failure, "description": "the body is no image that can be read"},
    422: {"model": Failure, "description": "a parameter is wrong"},
    501: {"model": Failure, "description": "the server has no model"},
    503: {"model": Failure, "description": "the server is busy, or the answer took too long"},
}
_OF_AN_ID: dict[int | str, dict[str, Any]] = {status: _FAILURES[status] for status in (404, 422, 503)}

K = Annotated[int, Query(ge=1, le=MAX_K, description="how many neighbours")]
Radius = Annotated[int | None, Query(ge=0, le=4096, description="only neighbours up to this distance")]
Label = Annotated[tuple[str, ...], Query(description="only neighbours of this class; may be repeated")]
Decode = Annotated[str, Query(description="a decoder that /stats lists")]
NumClasses = Annotated[int, Query(ge=1, le=MAX_K, description="how many classes")]
Id = Annotated[int, Path(ge=0, le=MAX_ID)]


def create_app(service: Service, limits: Limits) -> "Guarded":
    """The application. It owns threads, which end when its server does."""
    images, codes, thumbnails = (
        Work(name, limits.num_threads, limits.max_waiting, limits.seconds)
        for name in ("images", "codes", "thumbnails")
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        refreshing = asyncio.create_task(_keep_fresh(service, limits.refresh_seconds))
        try:
            yield
        finally:
            refreshing.cancel()
            for work in (images, codes, thumbnails):
                work.close()

    app = FastAPI(
        title="llc.serve",
        version=llc.__version__,
        summary="Nearest images by short binary codes",
        description="Send an image, a code or an id of the index; get its nearest neighbours or its classes. "
        "For example: `curl --data-binary @cat.jpg 'http://127.0.0.1:8000/search?k=5'`",
        docs_url=None,  # FastAPI's own pages load scripts from other sites
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_queries(app, _Queries(service, limits, images, codes))
    _add_lookups(app, service, limits, codes, thumbnails)
    _add_pages(app)
    _add_errors(app)
    return Guarded(app, limits)


# ---- queries


class _Queries:
    """Reads what was sent, an image or JSON, and finds the answer in the threads for its kind."""

    def __init__(self, service: Service, limits: Limits, images: Work, codes: Work) -> None:
        self._service, self._images, self._codes = service, images, codes
        most, seconds = limits.max_waiting, limits.seconds
        self._image_bodies = Bodies(most, limits.max_bytes, seconds)
        too_large = _JSON_TOO_LARGE if _MAX_JSON <= limits.max_bytes else ""
        self._json_bodies = Bodies(most, min(_MAX_JSON, limits.max_bytes), seconds, too_large)

    async def answer(
        self, request: Request, function: Callable[[Service, torch.Tensor | None, np.ndarray], Any]
    ) -> Any:
        """function(service, z, code) of what was sent: an image, or a code or an id, which have no z.

        It gets the service as it was at one moment, so that a code, the model that made it, and the codes
        that it is compared with belong together.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith("multipart/"):
            raise Refused(
                415, "send the image file itself as the body, not a form: curl --data-binary @cat.jpg URL"
            )
        is_json = kind == "application/json"
        work, bodies = (self._codes, self._json_bodies) if is_json else (self._images, self._image_bodies)
        work.check()  # before anything is sent in vain
        data = await bodies.read(request.receive, request.headers.get("content-length"))

        def find():
            service = self._service.snapshot()
            # curl -d calls JSON a form. No image file begins with a brace.
            if is_json or data.startswith(b"{"):
                return function(service, None, _code_in(data, service))
            if not data:
                raise Refused(422, "the body is empty; send an image file, or JSON with a code")
            z = service.project(data)
            return function(service, z, pack_bits(z).numpy())

        with work.place():
            return await work.run(find)


def _add_queries(app: FastAPI, queries: _Queries) -> None:
    known = [Depends(_check_parameters)]

    @app.post("/search", responses=_FAILURES, openapi_extra=_BODY, dependencies=known)
    async def search(request: Request, k: K = 10, radius: Radius = None, label: Label = ()) -> Neighbours:
        """The nearest neighbours of an image, a code or an id; with `radius`, up to that distance."""
        return await queries.answer(request, lambda service, _, code: service.search(code, k, radius, label))

    @app.post("/classify", responses=_FAILURES, openapi_extra=_BODY, dependencies=known)
    async def classify(request: Request, decode: Decode = "mhd", k: NumClasses = 5) -> Classes:
        """The best classes of an image or a code, by one of the model's decoders."""
        return await queries.answer(request, lambda service, z, code: service.classify(decode, k, z, code))

    @app.post("/encode", responses=_FAILURES, openapi_extra=_BODY, dependencies=known)
    async def encode(request: Request) -> Code:
        """The code of an image."""
        return await queries.answer(request, lambda service, _, code: service.code(code))


def _check_parameters(request: Request) -> None:
    """Refuses a parameter that the request does not have: without a word it would be ignored."""
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            there_are = f"there are {', '.join(known)}" if known else "there is none"
            raise Refused(422, f"{name[:80]!r} is not a parameter of {request.url.path[:80]}; {there_are}")


def _code_in(data: bytes, service: Service) -> np.ndarray:
    """The code that a JSON body gives or names, uint8 [1, code_size]. Raises Refused."""
    expected = 'expected {"code": "HEXADECIMAL DIGITS"} or {"id": NUMBER}'
    if len(data) > _MAX_JSON:
        raise Refused(413, _JSON_TOO_LARGE)
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise Refused(422, f"the body is not JSON; {expected}") from None
    match body:
        case {"code": str(code)} if len(body) == 1:
            return service.code_of(code)
        case {"id": int(id)} if len(body) == 1 and type(id) is int and 0 <= id <= MAX_ID:
            return service.code_at(id)
    raise Refused(422, expected)


# ---- what the index holds


def _add_lookups(app: FastAPI, service: Service, limits: Limits, codes: Work, thumbnails: Work) -> None:
    @app.get("/images/{id}", responses=_OF_AN_ID)
    async def image(id: Id) -> Record:
        """The code, the file and the class of an id."""
        with codes.place():
            return await codes.run(service.record, id)

    @app.get(
        "/images/{id}/thumbnail",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": _PICTURE}}, **_OF_AN_ID},
    )
    async def thumbnail(id: Id) -> Response:
        """A small JPEG of an image of the index, if its file is still what was indexed."""
        with thumbnails.place():
            data = await thumbnails.run(service.thumbnail, id)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        """What the index holds, its classes, and the decoders that can be used."""
        with codes.place():
            found = await codes.run(service.stats)
        return {**found, "max_bytes": limits.max_bytes, "max_k": MAX_K}

    @app.get("/health")
    async def health() -> Health:
        """Whether the server is there. It answers while the server is busy, too."""
        stale = service.stale
        return Health("ok" if stale is None else "stale", stale)


async def _keep_fresh(service: Service, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(service.refresh)


# ---- errors: JSON with one text, whatever went wrong


def _failed(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": reason}, status, headers)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return _failed(error.status, error.reason, error.headers)

    @app.exception_handler(UserError)
    async def broken(_: Request, error: UserError) -> JSONResponse:
        return _failed(500, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _failed(422, f"{first['loc'][-1]}: {first['msg']}, got {first.get('input')!r:.80}")

    @app.exception_handler(404)
    async def missing(request: Request, _: Exception) -> JSONResponse:
        return _failed(404, f"there is no {request.url.path[:80]} here; /docs lists what there is")

    @app.exception_handler(405)
    async def wrong_method(request: Request, _: Exception) -> JSONResponse:
        return _failed(
            405, f"{request.url.path[:80]} does not take {request.method[:20]}; /docs says what it takes"
        )

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> JSONResponse:
        return _failed(500, "the server failed; its log says why")


# ---- pages


def _add_pages(app: FastAPI) -> None:
    ours = importlib.resources.files("llc.serve")
    theirs = importlib.resources.files("fastapi_offline") / "static"  # Swagger UI
    pages = {
        "/": _page((ours / "page.html").read_text("utf-8"), images="'self' blob:"),
        "/docs": _page((ours / "docs.html").read_text("utf-8"), images="'self' data:", files="'self'"),
    }

    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def page(request: Request) -> Response:
        return pages[request.url.path]

    def add(name: str, kind: str) -> None:
        data = (theirs / name).read_bytes()

        @app.get(f"/docs/{name}", include_in_schema=False)
        async def file() -> Response:
            return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    add("swagger-ui-bundle.js", "text/javascript")
    add("swagger-ui.css", "text/css")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204)


def _page(html: str, images: str, files: str = "") -> Response:
    """A page whose scripts and styles are those that stand in it, known by their hashes, and no others.

    images, files: where its images, and further scripts and styles, may be from.
    """
    of = {
        tag: " ".join(
            [files, *(f"'sha256-{_hash(text)}'" for text in re.findall(f"<{tag}>(.*?)</{tag}>", html, re.S))]
        )
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {of['script']}; style-src {of['style']}; img-src {images}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Response(html, media_type="text/html", headers={"Content-Security-Policy": policy})


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# ---- around all of it

_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guarded:
    """The application behind the checks that hold for every request (ASGI)."""

    def __init__(self, app: FastAPI, limits: Limits) -> None:
        self.app, self._limits = app, limits

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        # Without these, a request has no body.
        unread = (
            "content-length" in headers and headers["content-length"] != "0" or "transfer-encoding" in headers
        )

        async def counted():
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def protected(message):
            if message["type"] == "http.response.start":
                own = {key.decode("latin-1").lower() for key, _ in message["headers"]}
                added = {key: value for key, value in _HEADERS.items() if key not in own}
                if unread:  # the rest of the body would be taken for the next request
                    added["connection"] = "close"
                message["headers"] = [
                    *message["headers"],
                    *((key.encode(), value.encode()) for key, value in added.items()),
                ]
            await send(message)

        try:
            check_sender(headers, self._limits.allowed_hosts)
        except Refused as error:
            await _failed(error.status, error.reason)(scope, counted, protected)
            return
        if scope["method"] == "HEAD":  # uvicorn sends no body for it
            scope = {**scope, "method": "GET"}
        await self.app(scope, counted, protected)
