"""What a checkpoint must have in common with the run that resumes from it."""

import dataclasses
import hashlib

from llc import recipe
from llc.data.storage import read_sample
from llc.errors import UserError

_NUM_SAMPLES = 32  # whose bytes identify a dataset, beside its tables

# Keys that may change when a run resumes, because they do not change what is computed.
_FREE = {
    "data.train_dataset",
    "data.val_dataset",
    "data.num_workers",
    "data.on_error",
    "data.loader",
    "training.checkpoint_minutes",
    "training.keep",
    "training.skip_non_finite",
    "validation.fit_decoder",
    "dist.backend",
    "dist.timeout_minutes",
    "logging.folder",
    "logging.name",
    "logging.to",
    "logging.project",
}
# Keys that must not change, because the state would not fit the network or would have no meaning.
_FIXED = {
    "model.arch",
    "model.width",
    "codes.num_bits",
    "codes.head",
    "codes.hidden",
    "codes.normalize",
    "instance.backbone_lr",  # the optimiser's groups depend on it
    "training.stages",
}


def _defaults():
    """{key: default}: the values that a checkpoint from before a key existed was trained with."""
    return {
        f"{section}.{field.name}": field.default
        for section, kind in recipe.sections().items()
        for field in dataclasses.fields(kind)
    }


def identity(config, train_shards, val_shards, init_codebook):
    """What a checkpoint stores to identify its run, in plain values.

    init_codebook: the tensor that codes.init_codebook names; None if it names none, or its file is gone.
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
    """SHA-256 of the tables and of some samples, because raw images of one size have the same tables."""
    digest = hashlib.sha256(shards.manifest.tables_sha256.encode())
    for index in range(0, len(shards), -(-len(shards) // _NUM_SAMPLES)):
        digest.update(read_sample(shards, index))
    return digest.hexdigest()


def check(stored, now, where, anyway):
    """Compares two identities. Raises UserError if they differ; with `anyway`, returns lines that say how.

    where: what to call the checkpoint in messages. A difference in a key of _FIXED or in the classes is an
    error in either case.
    """
    differences, fatal, defaults = [], [], _defaults()
    for key, value in now["config"].items():
        before = stored["config"].get(key, defaults.get(key, value))
        if before != value:
            (fatal if key in _FIXED else differences).append(f"{key} was {before!r} and is {value!r}")
    if stored["class_names"] != now["class_names"]:
        fatal.append(
            f"the train data has other classes, or other names for them: {len(stored['class_names'])} "
            f"classes before, {len(now['class_names'])} now"
        )
    elif stored["train_data"] != now["train_data"]:
        differences.append("data.train_dataset is another beton than the one it was trained on")
    if stored["val_data"] != now["val_data"]:
        differences.append("data.val_dataset is another beton than the one it was validated on")
    if now["init_codebook"] is not None and stored["init_codebook"] != now["init_codebook"]:
        differences.append("codes.init_codebook holds other values than the run started from")
    if fatal or differences and not anyway:
        advice = (
            "it cannot be continued with these; restore what it had, or start a new run"
            if fatal
            else "restore what it had, or resume nevertheless with --resume_anyway=1"
        )
        raise UserError(
            f"{where} is of a run that differs:\n  " + "\n  ".join(fatal + differences) + f"\n{advice}"
        )
    return differences
