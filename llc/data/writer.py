"""Writes a beton (FFCV's file format, version 2: `image`, `label`) and its manifest, in several processes.

Each worker encodes whole chunks of samples into pages of its own, takes page numbers from a shared counter and writes them itself,
so no process handles all bytes. FFCV's own writer hangs for ever when a worker fails; here a failure is reported and ends all.
"""
import dataclasses
import multiprocessing
import os
import queue
import signal
import time
from pathlib import Path

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType
from tqdm import tqdm

from llc.config import option
from llc.data.images import load_rgb
from llc.data.manifest import METADATA_TYPE, Manifest, load_manifest, manifest_path, read_tables
from llc.data.sources import open_source
from llc.errors import UserError

PAGE_SIZE = 1 << 23  # FFCV's default; a sample never straddles pages


@dataclasses.dataclass(frozen=True)
class WriterConfig:
    """How images become a beton; names and defaults are ffcv-imagenet's ResNet50 setting."""

    write_path: str = option(help="the beton to write; OUT.beton.json is written beside it")
    data_dir: str = option("", help="folder with one folder a class, or a root holding train/ and val/; torchvision's root")
    dataset: str = option("folder", help="folder (imagenet means the same), or a torchvision dataset's name, e.g. CIFAR10")
    split: str = option("train", choices=("train", "val"), help="which split to write")
    write_mode: str = option("proportion", choices=("raw", "jpg", "smart", "proportion"), help="how samples are stored")
    max_resolution: int = option(500, minimum=1, help="longer sides are shrunk to this many pixels")
    num_workers: int = option(-1, minimum=-1, help="processes; -1: one a core")
    chunk_size: int = option(100, minimum=1, help="samples a worker takes at a time")
    jpeg_quality: int = option(90, minimum=1, maximum=100, help="JPEG quality")
    compress_probability: float = option(0.5, minimum=0, maximum=1, help="proportion: share of samples stored as JPEG")
    smart_threshold: int = option(0, minimum=0, help="smart: pixels above this many bytes are stored as JPEG")
    subset: int = option(-1, minimum=-1, help="write this many samples, evenly spaced over all (-1: all)")
    val_fraction: float = option(0.0, minimum=0, maximum=0.9, help="hold out this share of each class as the val split")
    class_names_from: str = option("", help="a manifest (train.beton.json) whose label order is forced")
    on_error: str = option("fail", choices=("fail", "skip"), help="unreadable images: list all and write nothing, or skip them")


def write_beton(config):
    """Writes `config.write_path` and its manifest; returns the Manifest. Raises UserError; nothing is left half written."""
    target = Path(config.write_path)
    if not target.parent.is_dir():
        raise UserError(f"--cfg.write_path={target}: the folder {target.parent} does not exist")
    if target.is_dir():
        raise UserError(f"--cfg.write_path={target}: is a folder; name a file, e.g. {target / 'train.beton'}")
    class_names = load_manifest(config.class_names_from).class_names if config.class_names_from else None
    source = open_source(config.dataset, config.data_dir, config.split, config.val_fraction, class_names, config.subset)
    indices = np.arange(len(source))
    for note in source.notes:
        print(note)

    started = time.perf_counter()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        kept, bad = _write(source, indices, config, temporary)
        if bad and config.on_error == "fail":
            listed = "\n  ".join(bad[:50]) + (f"\n  ... {len(bad) - 50} more" if len(bad) > 50 else "")
            raise UserError(f"{len(bad)} of {len(indices)} images cannot be read; nothing was written:\n  {listed}\n"
                            f"mend or remove them, or leave them out with --cfg.on_error=skip")
        if not kept.size:
            raise UserError(f"none of the {len(indices)} images can be read; nothing was written:\n  {bad[0]}")
        for line in bad:
            print(f"skipped: {line}")
        counts = np.bincount(source.labels[kept], minlength=len(source.class_names))
        settings = dataclasses.asdict(config)
        for key in ("write_path", "num_workers", "chunk_size"):
            del settings[key]
        manifest = Manifest(tuple(source.class_names), len(kept), tuple(counts.tolist()), temporary.stat().st_size,
                            read_tables(temporary)[2], settings, tuple(bad))
        # a crash between the two renames leaves a beton without a manifest, never one with a wrong manifest
        manifest_path(target).unlink(missing_ok=True)
        os.replace(temporary, target)
        manifest.save(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    print(f"{target}: {manifest.num_samples} images, {manifest.num_classes} classes, {manifest.file_size / 1e6:.1f} MB, "
          f"{seconds:.1f} s ({manifest.num_samples / seconds:.0f} images/s)")
    return manifest


def encode_sample(image, index, config):
    """uint8 [H, W, 3] -> (metadata of the image field, payload uint8 [bytes]) with FFCV's own field.

    Whether a sample is stored raw under `proportion` depends on its index alone, not on the workers.
    """
    # FFCV rounds a shrunken side down, to 0 for slivers: repeat the short side so that one pixel is left
    short, long = sorted(image.shape[:2])
    if long > config.max_resolution and short * config.max_resolution < long:
        image = np.repeat(image, -(-long // (config.max_resolution * short)), axis=int(image.shape[1] < image.shape[0]))
    mode = config.write_mode
    if mode == "proportion":
        mode = "jpg" if np.random.default_rng([2021, index]).random() < config.compress_probability else "raw"
    field = RGBImageField(mode, config.max_resolution, config.smart_threshold or None, config.jpeg_quality)
    metadata, payload = np.zeros(1, field.metadata_type), []

    def allocate(size):
        payload.append(np.empty(size, np.uint8))
        return 0, payload[0]

    field.encode(metadata, image, allocate)
    return metadata[0], payload[0]


def _write(source, indices, config, path):
    """Writes the beton's bytes; returns (the source indices kept, messages of the unreadable images)."""
    context = multiprocessing.get_context("fork")  # the source is inherited, not copied
    num_workers = config.num_workers if config.num_workers > 0 else len(os.sched_getaffinity(0))
    chunks = [indices[i:i + config.chunk_size] for i in range(0, len(indices), config.chunk_size)]
    num_workers = min(num_workers, len(chunks))
    tables_end = HeaderType.itemsize + 2 * FieldDescType.itemsize + len(indices) * METADATA_TYPE.itemsize
    first_page = -(-tables_end // PAGE_SIZE) * PAGE_SIZE
    todo, done, next_page = context.Queue(), context.Queue(), context.Value("q", 0)
    for number, chunk in enumerate(chunks):
        todo.put((number, chunk))
    for _ in range(num_workers):
        todo.put(None)
    path.touch()
    workers = [context.Process(target=_worker, daemon=True, args=(source, config, str(path), first_page, todo, done, next_page))
               for _ in range(num_workers)]
    stopped = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    results, bad, finished = {}, {}, 0
    try:
        for worker in workers:
            worker.start()
        with tqdm(total=len(indices), unit="img", desc=f"writing {Path(config.write_path).name}", mininterval=0.5) as bar:
            while finished < num_workers:
                try:
                    kind, *content = done.get(timeout=1)
                except queue.Empty:
                    dead = [w for w in workers if w.exitcode not in (None, 0)]
                    if dead:
                        raise UserError(f"a worker process died (exit status {dead[0].exitcode}; -9 is often the kernel "
                                        f"running out of memory); nothing was written") from None
                    continue
                if kind == "chunk":
                    number, metadata, allocation, messages = content
                    results[number] = metadata, allocation, [i for i, _ in messages]
                    bad.update(messages)
                    bar.update(len(chunks[number]))
                elif kind == "error":
                    raise UserError(f"{config.write_path}: {content[0]}; nothing was written")
                else:
                    finished += 1
    finally:
        signal.signal(signal.SIGTERM, stopped)
        for worker in workers:
            if worker.pid:
                worker.terminate()
        for worker in workers:
            if worker.pid:
                worker.join(5)
        for q in (todo, done):
            q.cancel_join_thread()
            q.close()

    metadata = np.concatenate([results[n][0] for n in range(len(chunks))])
    allocations = np.concatenate([results[n][1] for n in range(len(chunks))])
    kept = np.array([i for i in indices if int(i) not in bad], dtype=np.int64)
    if len(kept):
        _write_tables(path, metadata, allocations, first_page + next_page.value * PAGE_SIZE)
    return kept, [bad[i] for i in sorted(bad)]


def _write_tables(path, metadata, allocations, end):
    allocations["sample_id"] = np.arange(len(metadata))
    header = np.zeros(1, HeaderType)
    header["version"], header["num_fields"], header["page_size"] = CURRENT_VERSION, 2, PAGE_SIZE
    header["num_samples"], header["alloc_table_ptr"] = len(metadata), end
    fields = np.zeros(2, FieldDescType)
    for i, (name, type_id, field) in enumerate((("image", 2, RGBImageField()), ("label", 1, IntField()))):
        fields[i]["type_id"] = type_id
        fields[i]["name"][:len(name)] = np.frombuffer(name.encode(), np.uint8)
        fields[i]["arguments"][:] = field.to_binary()[0]
    with open(path, "r+b") as file:
        file.write(header.tobytes() + fields.tobytes() + metadata.tobytes())
        file.seek(end)
        file.write(allocations.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _worker(source, config, path, first_page, todo, done, next_page):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import cv2
    cv2.setNumThreads(1)
    page, used, start = np.zeros(PAGE_SIZE, np.uint8), PAGE_SIZE, None

    def flush():
        if start is not None:
            with open(path, "r+b", buffering=0) as file:
                file.seek(start)
                if file.write(page) != PAGE_SIZE:
                    raise OSError(28, "no space left on the device")

    try:
        while (item := todo.get()) is not None:
            number, chunk = item
            metadata, allocations, messages = [], [], []
            for i in map(int, chunk):
                try:
                    image, payload = encode_sample(load_rgb(source.image(i)), i, config)
                except (UserError, OSError) as error:
                    messages.append((i, f"{source.name(i)}: {error}"))
                    continue
                if payload.size > PAGE_SIZE:
                    messages.append((i, f"{source.name(i)}: {payload.size} bytes do not fit a page of {PAGE_SIZE}; "
                                        f"lower --cfg.max_resolution"))
                    continue
                if used + payload.size > PAGE_SIZE:
                    flush()
                    with next_page.get_lock():
                        start = first_page + next_page.value * PAGE_SIZE
                        next_page.value += 1
                    page[:], used = 0, 0
                page[used:used + payload.size] = payload
                image["data_ptr"] = start + used
                row = np.zeros(1, METADATA_TYPE)
                row["f0"], row["f1"] = image, source.labels[i]
                metadata.append(row)
                allocations.append((0, start + used, payload.size))
                used += payload.size
            done.put(("chunk", number, np.concatenate(metadata) if metadata else np.zeros(0, METADATA_TYPE),
                      np.array(allocations, dtype=ALLOC_TABLE_TYPE), messages))
        flush()
        done.put(("end",))
    except OSError as error:
        done.put(("error", error.strerror or str(error)))
    except Exception as error:
        done.put(("error", f"a worker failed: {error!r}"))
