"""What a checkpoint must have in common with the run that continues from it."""

import dataclasses
import hashlib

from llc import recipe
from llc.data.storage import read_sample
from llc.errors import UserError

_NUM_SAMPLES = 32  # that a dataset is known by, beside its tables

# Keys that may change between two parts of a run: they say where things are and how far to go on, not what is computed.
_FREE = {
    "data.train_dataset",
    "data.val_dataset",
    "data.num_workers",
    "data.on_error",
    "training.checkpoint_minutes",
    "training.keep",
    "training.skip_non_finite",
    "dist.backend",
    "dist.timeout_minutes",
    "logging.folder",
    "logging.name",
}
# Keys without which the state does not fit the network, or has no meaning.
_FIXED = {"model.arch", "model.width", "codes.num_bits", "codes.normalize", "training.stages"}


def _defaults():
    """{key: default}: what a checkpoint from before a key existed was trained with."""
    return {
        f"{section}.{field.name}": field.default
        for section, kind in recipe.sections().items()
        for field in dataclasses.fields(kind)
    }


def identity(config, train_shards, val_shards, init_codebook):
    """What is stored in a checkpoint to know the run by: plain values. init_codebook: the tensor that codes.init_codebook names, or None
    where there is none, or no longer.
    """
    values = {
        f"{section}.{key}": value for section, keys in config.as_dict().items() for key, value in keys.items()
    }
    digest = (
        ""
        if not config.codes.init_codebook
        else None
        if init_codebook is None
        else hashlib.sha256(init_codebook.numpy().tobytes()).hexdigest()
    )
    return {
        "config": {key: value for key, value in values.items() if key not in _FREE},
        "init_codebook": digest,
        "train_data": _digest(train_shards),
        "val_data": _digest(val_shards),
        "class_names": list(train_shards.manifest.class_names),
    }


def _digest(shards):
    """Of all tables, and of the data of some samples: raw images of one size have the same tables whatever they show."""
    digest = hashlib.sha256(shards.manifest.tables_sha256.encode())
    for index in range(0, len(shards), -(-len(shards) // _NUM_SAMPLES)):
        digest.update(read_sample(shards, index))
    return digest.hexdigest()


def check(stored, now, where, anyway):
    """Compares two identities; returns lines that say what differs, for `anyway`. Else raises UserError with them.

    where: what to call the checkpoint in messages. What a state cannot do without is an error in either case.
    """
    differences, fatal, defaults = [], [], _defaults()
    for key, value in now["config"].items():
        before = stored["config"].get(key, defaults.get(key, value))
        if before != value:
            (fatal if key in _FIXED else differences).append(f"{key} was {before!r} and is {value!r}")
    if stored["class_names"] != now["class_names"]:
        fatal.append(
            f"the train data has other classes: {len(stored['class_names'])} before, {len(now['class_names'])} now, or other names"
        )
    elif stored["train_data"] != now["train_data"]:
        differences.append("data.train_dataset is another beton than it was trained on")
    if stored["val_data"] != now["val_data"]:
        differences.append("data.val_dataset is another beton than it was validated on")
    if now["init_codebook"] is not None and stored["init_codebook"] != now["init_codebook"]:
        differences.append("codes.init_codebook holds other values than the run started from")
    if fatal or differences and not anyway:
        advice = (
            "it cannot be continued with these; give it back what it had, or start a new run"
            if fatal
            else "give it back what it had, or continue all the same with --resume_anyway=1"
        )
        raise UserError(
            f"{where} is of a run that differs:\n  " + "\n  ".join(fatal + differences) + f"\n{advice}"
        )
    return differences
