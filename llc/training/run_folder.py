"""The run folder: config.yaml, class_names.json, log.jsonl, results.csv, TensorBoard events, checkpoints/, codebook.npy."""
import csv
import json
import time
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from llc.checkpoints import read_torch_file
from llc.codebook import save_codebook
from llc.errors import UserError
from llc.files import atomic_write


class RunFolder:
    """One run's files; written by the main process alone.

    checkpoints/: initial.pth, codebook.pth and instance.pth (network at the end of each stage), model_best.pth (best epoch of the last
    stage), last.pth (everything needed to resume).
    """

    def __init__(self, path):
        self.path = Path(path)
        self._events = None

    @classmethod
    def create(cls, folder, name):
        path = Path(folder) / (name or time.strftime("%Y-%m-%d_%H-%M-%S"))
        try:
            (path / "checkpoints").mkdir(parents=True)
        except FileExistsError:
            raise UserError(f"run folder {path} exists already; choose another logging.name, or continue it with --resume={path}"
                            ) from None
        except OSError as error:
            raise UserError(f"run folder {path}: cannot be made: {error.strerror}") from error
        return cls(path)

    @classmethod
    def open(cls, path):
        run = cls(path)
        if not (run.path / "config.yaml").is_file():
            raise UserError(f"{path}: not a run folder (it has no config.yaml)")
        return run

    def checkpoint(self, name):
        return self.path / "checkpoints" / f"{name}.pth"

    def save(self, name, state):
        atomic_write(self.checkpoint(name), lambda file: torch.save(state, file))

    def load(self, name):
        return read_torch_file(self.checkpoint(name))

    def save_codebook(self, codebook):
        save_codebook(self.path / "codebook.npy", codebook)

    def save_class_names(self, class_names):
        """class_names.json: a list, in label order."""
        text = json.dumps(class_names, indent=1).encode("ascii")
        atomic_write(self.path / "class_names.json", lambda file: file.write(text))

    def log(self, line):
        """A line an epoch: to log.jsonl, and its numbers to TensorBoard at the global epoch."""
        with open(self.path / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        if self._events is None:
            self._events = SummaryWriter(str(self.path), purge_step=line["global_epoch"])
        for key, value in line.items():
            if isinstance(value, (int, float)) and key not in ("epoch", "global_epoch"):
                self._events.add_scalar(key, value, line["global_epoch"])
        self._events.flush()

    def drop_log_after(self, global_epoch):
        """Forgets the lines of epochs that a resumed run does again."""
        path = self.path / "log.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        kept = [line for line in lines if line["global_epoch"] <= global_epoch]
        atomic_write(path, lambda file: file.writelines((json.dumps(line) + "\n").encode() for line in kept))

    def save_results(self, rows):
        """results.csv: a row a metric: name, final value, value in the best epoch (chosen on val: a selection), headline or not."""
        def write(file):
            writer = csv.writer(file)
            writer.writerow(["metric", "final", "best_epoch", "headline"])
            writer.writerows(rows)
        atomic_write(self.path / "results.csv", write, mode="w")

    def close(self):
        if self._events is not None:
            self._events.close()
