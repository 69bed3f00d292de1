"""Loggers that write files into the run folder."""

import contextlib
import csv
import io
import json
import os
import socket
import time

from llc.files import atomic_write
from llc.loggers.base import Logger, numbers, register


@register
class TensorBoard(Logger):
    """Event files for TensorBoard: a tag for each number of log.jsonl, by global epoch; a file per start."""

    name = "tensorboard"
    files = ("events.out.tfevents.*",)

    def __init__(self, run):
        super().__init__(run)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._path, self._size = run.folder / name, 0

    def write(self, lines):
        """Appends an epoch whole or not at all; a full disk would end TensorBoard's own writer silently."""
        # imported here, because they take a second, and only the main process of a run needs them
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        step, content = lines[-1]["global_epoch"], io.BytesIO()
        writer = RecordWriter(content)
        if not self._size:
            _write_event(writer, file_version="brain.Event:2")
            # tells TensorBoard to forget what an earlier process wrote about epochs that are repeated
            _write_event(writer, step=step, session_log={"status": "START"})
        values = [
            Summary.Value(tag=key, simple_value=value)
            for key, value in numbers(lines[-1]).items()
            if key not in ("epoch", "global_epoch")
        ]
        _write_event(writer, step=step, summary=Summary(value=values))
        try:
            with open(self._path, "ab") as file:
                file.write(content.getvalue())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self._path, self._size)
            raise
        self._size += len(content.getvalue())


def _write_event(writer, **content):
    from tensorboard.compat.proto.event_pb2 import Event

    writer.write(Event(wall_time=time.time(), **content).SerializeToString())


@register
class Csv(Logger):
    """log.csv: a row for each epoch, for spreadsheets. The values are written as in log.jsonl.

    Columns stand in the order in which they first appeared, so that a later stage's own figures come last. A
    figure that an epoch lacks is an empty cell.
    """

    name = "csv"
    files = ("log.csv",)

    def write(self, lines):
        """Replaces the whole file, so that a run that was killed and resumed has each row once."""
        columns = list(dict.fromkeys(key for line in lines for key in line))

        def write(file):
            rows = csv.DictWriter(file, columns)
            rows.writeheader()
            for line in lines:
                rows.writerow({key: _cell(value) for key, value in line.items()})

        atomic_write(self.run.folder / "log.csv", write, mode="w")


def _cell(value):
    return value if isinstance(value, str) else json.dumps(value)
