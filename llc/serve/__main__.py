"""A server on this machine: send an image or a code, get the nearest images of an index or classes.

    python -m llc.serve PHOTOS.index                     then open http://127.0.0.1:8000
    python -m llc.serve PHOTOS.index --model=MODEL       where the index does not hold its model
    curl --data-binary @cat.jpg 'http://127.0.0.1:8000/search?k=5'
    curl --json '{"code": "a0f3"}' 'http://127.0.0.1:8000/search?radius=2&label=cat'
    curl --data-binary @cat.jpg 'http://127.0.0.1:8000/classify?decode=mhd'

The page at / takes images by drag and drop; /docs documents the API. What other processes commit to the
index is taken over while the server runs. Ctrl-C stops it. It needs pip install 'llcodes[serve]'.

Only programs on this machine can reach the server, unless --host says otherwise. It has no passwords and no
encryption: whoever reaches it can search, and see the thumbnails and the names of the index's files. Beyond
this machine, put a web server in front of it that has both.
"""

import dataclasses
import functools
import ipaddress

from llc import config as edge
from llc.data.sources import printable
from llc.encoder import Encoder
from llc.index.commands import model_of
from llc.index.index import Index
from llc.options import option
from llc.packages import needed

_PACKAGES = ("fastapi", "uvicorn", "fastapi_offline")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is served, to whom, and within which limits."""

    index: str = option(positional=True, help="the folder of an index, of python -m llc.index")
    model: str = option("", help="the model that made its codes; empty: the one that the index holds")
    checkpoint: str = option(
        "", help="of a run folder: instance, joint, codebook, ...; empty: the first of these"
    )
    num_bits: int = option(0, minimum=0, help="use only this many bits of each code, the first ones; 0: all")
    device: str = option("auto", help="cpu, cuda, or cuda:N for GPU number N; auto: cuda if there is a GPU")
    images: str = option(
        "", help="show thumbnails only of files in this folder; empty: of files that are as they were indexed"
    )
    host: str = option(
        "127.0.0.1", help="the address to listen at; 0.0.0.0: all of this machine's, for everyone"
    )
    port: int = option(8000, minimum=0, maximum=65535, help="0: any that is free")
    allowed_hosts: tuple[str, ...] = option(
        (), help="names beside localhost by which browsers call the server"
    )
    max_bytes: int = option(20_000_000, minimum=1, help="of a request's body, such as an image file")
    max_pixels: int = option(50_000_000, minimum=1, help="of an image")
    max_waiting: int = option(32, minimum=1, help="requests of a kind that may run or wait; others get 503")
    timeout: float = option(30.0, minimum=0.1, help="seconds for a request to arrive, and for its answer")
    num_threads: int = option(2, minimum=1, help="requests of a kind that are worked on at a time")
    refresh: float = option(1.0, minimum=0.05, help="seconds between looks for what others have committed")


def main(argv: list[str]) -> None:
    options = edge.read_one(Options, argv, description=__doc__)
    for package in _PACKAGES:
        needed(package, "python -m llc.serve", extra="serve")
    from llc.serve.app import Limits, create_app
    from llc.serve.pictures import Thumbnails, limit_pixels
    from llc.serve.server import listen, run, url_of
    from llc.serve.service import Service

    # The address is taken before the model is loaded, which takes seconds.
    with listen(options.host, options.port) as listener:
        print(f"loading {printable(options.index)}", flush=True)
        index = Index.open(options.index)
        encoder_of = functools.partial(_encoder, options=options)
        service = Service(
            index,
            encoder_of(index),
            Thumbnails(options.images or None),
            encoder_of=None if options.model else encoder_of,
        )
        limits = Limits(
            max_bytes=options.max_bytes,
            max_waiting=options.max_waiting,
            seconds=options.timeout,
            refresh_seconds=options.refresh,
            num_threads=options.num_threads,
            allowed_hosts=tuple(name.lower() for name in (options.host, *options.allowed_hosts)),
        )
        limit_pixels(options.max_pixels)
        app = create_app(service, limits)
        if not _is_loopback(listener.getsockname()[0]):
            print(
                f"WARNING: --host={printable(options.host)} lets other machines reach this server, which has "
                "no passwords: whoever reaches it can search, and see thumbnails and names of the files."
            )
        images = "images and codes" if service.takes_images else "codes only, because there is no --model"
        print(
            f"{printable(options.index)}: {len(index):,} codes of {index.num_bits} bits; takes {images}\n"
            f"{url_of(listener)}  (the API: {url_of(listener)}/docs; Ctrl-C stops the server)",
            flush=True,
        )
        run(app, listener, max_connections=4 * options.max_waiting + 32, seconds=options.timeout)
    print("stopped")


def _encoder(index: Index, options: Options) -> Encoder | None:
    """The model that makes the index's codes, on its device; None if there is none. Raises UserError."""
    if not options.model and index.model is None:
        return None
    return model_of(index, options)


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


if __name__ == "__main__":
    edge.run(main)
