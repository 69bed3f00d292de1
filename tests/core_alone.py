"""The core of llc in a process that cannot import what only extras bring: tests/test_extras.py runs it.

    python -m tests.core_alone FOLDER

FOLDER holds hidden.json, a list of top-level modules that this process must not find, and images/train and
images/val. Runs the core from images to a search, then the commands that need an extra, which all end with an
error. Prints one JSON object: what the core made, what each command said, and modules that do not import.
"""

import contextlib
import importlib
import importlib.abc
import io
import json
import os
import sys
from pathlib import Path

TRAINING = (
    "--config=rn18_configs/llc_demo.yaml",
    "--model.width=8",
    "--codes.num_bits=10",
    "--training.batch_size=8",
    "--validation.batch_size=8",
    "--codebook.epochs=1",
    "--codebook.lr_peak_epoch=0",
    "--instance.epochs=1",
    "--data.train_dataset=train.beton",
    "--data.val_dataset=val.beton",
    "--data.num_workers=1",
)
# A command for each way to an extra: (the extra, the words).
COMMANDS = (
    (
        "timm",
        ("llc.train", *TRAINING, "--logging.name=timm", "--model.width=64", "--model.arch=timm:test_vit"),
    ),
    ("ffcv", ("llc.train", *TRAINING, "--logging.name=ffcv", "--data.loader=ffcv")),
    ("wandb", ("llc.train", *TRAINING, "--logging.name=wandb", "--logging.to=wandb")),
    ("mlflow", ("llc.train", *TRAINING, "--logging.name=mlflow", "--logging.to=mlflow")),
    ("onnx", ("llc.export", "runs/run", "--to=onnx", "--out=x.onnx")),
    ("timm", ("llc.export", "runs/run", "--to=timm", "--out=x.safetensors")),
    ("hub", ("llc.export", "runs/run", "--to=hub", "--out=x")),
    ("hub", ("llc.encode", "hf://owner/name", "--data=val.beton", "--out=x.npz")),
    ("evaluation", ("llc.taxonomy", "codes.npz", "--out=taxonomy")),
    ("evaluation", ("llc.evaluate", "runs/run", "--ood.dataset=val.beton")),
    ("report", ("llc.report", "runs/run")),
    ("report", ("llc.benchmark", "hamming", "--plot=speed.svg")),
    ("parquet", ("llc.write", "--cfg.data_dir=x.parquet", "--cfg.write_path=x.beton")),
    ("lmdb", ("llc.write", "--cfg.data_dir=x.lmdb", "--cfg.write_path=x.beton")),
    ("serve", ("llc.serve", "images.index", "--port=0")),
    ("search", ("llc.index", "export", "images.index", "--to=faiss", "--out=x.faiss")),
    ("search", ("llc.index", "export", "images.index", "--to=lancedb", "--out=x.lancedb")),
    ("search", ("llc.index", "export", "images.index", "--to=parquet", "--out=y.parquet")),
    ("search", ("llc.index", "import", "z.index", "x.parquet", "--form=parquet")),
)


def calls():
    """The same for functions of the library: (the extra, a name, a function without arguments)."""
    from llc.data.sources.imagenet import read_classes

    return (
        ("imagenet", "read_classes", lambda: read_classes("ILSVRC2012_devkit_t12.tar.gz")),
        ("ffcv", "import llc.ffcv", lambda: importlib.import_module("llc.ffcv")),
    )


class Without(importlib.abc.MetaPathFinder):
    """Another finder that does not find some top-level modules, as if they were not installed."""

    def __init__(self, finder, hidden):
        self.finder, self.hidden = finder, hidden

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):  # such as find_distributions, of importlib.metadata
        return getattr(self.finder, name)


def call(name, *words):
    """(exit status, stdout, stderr) of a command, in this process."""
    from llc import config

    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    output, errors, status = io.StringIO(), io.StringIO(), 0
    sys.argv = [name, *words]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            config.run(module.main)
        except SystemExit as end:
            status = end.code or 0
    return status, output.getvalue(), errors.getvalue()


def core():
    """Images to betons, both stages, and every use of the codes; returns what came out."""

    def run(*words):
        status, output, errors = call(*words)
        assert status == 0, (words, output, errors)
        return output

    for split in ("train", "val"):
        words = (f"--cfg.split={split}", f"--cfg.write_path={split}.beton", "--cfg.num_workers=1")
        run("llc.write", "--cfg.data_dir=images", *words)
    run("llc.train", *TRAINING, "--logging.name=run")
    evaluated = run("llc.evaluate", "runs/run", "--retrieval.database=train.beton")
    run("llc.encode", "runs/run", "--data=val.beton", "--out=codes.npz")
    found = run("llc.search", "codes.npz", "--queries=codes.npz", "--k=2")
    run("llc.index", "create", "images.index", "images/train", "--model=runs/run", "--num_workers=1")
    added = run("llc.index", "add", "images.index", "images/val", "--num_workers=1")
    picture = str(min(Path("images/val").glob("*/*")))
    nearest = run("llc.search", "images.index", picture, "--k=2")

    import llc

    encoder = llc.load("runs/run")
    codes = encoder.encode([picture])
    encoder.save("encoder.safetensors")
    again = llc.load("encoder.safetensors").encode([picture])
    distances, ids = llc.Index.open("images.index").search(codes, k=1)
    run("llc.export", "runs/run", "--to=original")
    return {
        "evaluated": evaluated,
        "found": found,
        "added": added,
        "nearest": nearest,
        "same code": bool((codes == again).all()),
        "distance": int(distances[0, 0]),
    }


def refusals():
    """[extra, what was called, its exit status, its message] of all that needs an extra."""
    from llc.errors import UserError

    said = []
    for extra, words in COMMANDS:
        status, _, errors = call(*words)
        said.append([extra, " ".join(words), status, errors])
    for extra, name, function in calls():
        try:
            function()
            said.append([extra, name, 0, ""])
        except (UserError, ModuleNotFoundError) as error:  # the second where a module is imported
            said.append([extra, name, 2, str(error)])
    return said


def unimportable():
    """{module of llc: the module that it lacks}."""
    import llc
    from llc.errors import UserError

    lacking, root = {}, Path(llc.__file__).parent
    for path in sorted(root.rglob("*.py")):
        parts = ("llc", *path.relative_to(root).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            lacking[name] = error.name
        except UserError as error:  # of llc.packages.needed
            lacking[name] = error.__cause__.name
    return lacking


def main(folder):
    os.chdir(folder)
    hidden = frozenset(json.loads(Path("hidden.json").read_text()))
    sys.meta_path[:] = [Without(finder, hidden) for finder in sys.meta_path]
    for name in ("x.parquet", "x.lmdb/data.mdb"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    report = {"core": core(), "refusals": refusals(), "unimportable": unimportable()}
    report["loaded"] = sorted(hidden & sys.modules.keys())
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
