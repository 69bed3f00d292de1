"""The taxonomy of classes that the bits of their codes form: a tree, its picture, and what it agrees with.

    python -m llc.taxonomy RUN [--data=val.beton] [--out=FOLDER]
    python -m llc.taxonomy encoder.safetensors --data=val.beton --out=FOLDER
    python -m llc.taxonomy model_best.pth --codebook=codebook.npy --data=val.beton --out=FOLDER
    python -m llc.taxonomy codes.npz --out=FOLDER                 (class codes from the codes of images)

MODEL is a run folder, a file that llc.load takes, or a .npz with codes, num_bits, labels and class_names, as
python -m llc.encode writes and any other encoder may. A model's class codes are those of its codebook. From a
.npz a class's code is made of its images' codes: each bit is that of most of them, 0 if tied.

--data: labelled images, on which confusion is measured and the images with the highest and lowest z of each
bit are found. Its default is a run's data.val_dataset where that exists, and a .npz itself; beside a .npz it
is another .npz, of other images. --data=none: no images. --out: a folder to make, RUN/taxonomy by default. A
folder that holds something is refused, so results are never overwritten.

The folder then holds the tree as tree.nwk (Newick), tree.json, dendrogram.svg and dendrogram.png;
nearest.csv, each class's nearest classes; bits.txt and bits.json, the classes on each side of each bit;
bits.png, the images with its highest and lowest z; and taxonomy.json, the figures. docs/how-to/taxonomy.md
says what they mean. Where class names are WordNet ids of ImageNet, such as n01440764, the tree shows their
words, and code distances are compared with WordNet's; --wordnet=FILE names another hierarchy, whose names are
those of the classes.

It needs scipy and matplotlib (the extra llcodes[evaluation]).
"""

import dataclasses
import glob
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from llc import config as edge
from llc import progress, runs
from llc.code_files import read_codes
from llc.codebook import majority_codes
from llc.data.batches import Images
from llc.data.sources import as_unicode, printable
from llc.encode import Encoding, open_for
from llc.encoder import Encoder, check_finite, load, non_finite
from llc.errors import UserError
from llc.evaluation import taxonomy, wordnet
from llc.evaluation.bit_images import Thumbnails
from llc.evaluation.decoders import bind
from llc.evaluation.taxonomy import Extremes
from llc.evaluation.taxonomy_report import Found, report
from llc.hamming import decode_mhd
from llc.inference import evaluating
from llc.options import option
from llc.packages import needed

_NONE = "none"  # the value of --data without images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Encoding):
    """Whose class codes, what is measured, and where it is written."""

    model: str = option(positional=True, help="a run folder, a file that llc.load takes, or codes.npz")
    out: str = option("", help="the folder to make; empty: RUN/taxonomy of a run folder")
    data: str = option("", help="labelled images, or none; empty: a run's val_dataset, codes.npz itself")
    codebook: str = option("", help="of a file: its codebook, .npy of real values or a run folder")
    linkage: str = option(
        "average", choices=taxonomy.LINKAGES, help="the distance of clusters, in hierarchical clustering"
    )
    decode: str = option(
        "auto",
        choices=("auto", "mhd", "posterior"),
        help="how images are decoded for the confusion; auto: posterior if it is fitted, else mhd",
    )
    decoder: str = option("", help="of a model: the .npz of fitted decoders to use")
    wordnet: str = option("", help="a hierarchy of the classes, in place of WordNet's for ImageNet's")
    num_images: int = option(10, minimum=1, help="images with the highest and lowest z of each bit")
    permutations: int = option(999, minimum=0, help="random orders in each Mantel test; 0: no test")
    seed: int = option(0, minimum=0, help="of the permutations")


def main(argv: list[str]) -> None:
    options = edge.read_one(Options, argv, description=__doc__)
    out = _out(options)
    for module in ("scipy", "matplotlib"):  # before long work
        needed(module, taxonomy.PURPOSE, extra="evaluation")
    found = _of_codes(options) if options.model.endswith(".npz") else _of_model(options)
    hierarchy, no_hierarchy = _hierarchy(found, options)
    try:
        contents, summary = report(
            found,
            hierarchy,
            no_hierarchy,
            linkage=options.linkage,
            permutations=options.permutations,
            seed=options.seed,
        )
    except wordnet.NoCommonHypernym as error:
        raise UserError(
            f"--wordnet={printable(options.wordnet)}: {error}; all classes need one root above them"
        ) from error
    _write_folder(out, contents)
    print(summary)
    print(f"{printable(out)}: {', '.join(contents)}")


def _out(options: Options) -> Path:
    """The folder to make. Raises UserError if it holds something, or cannot be made."""
    if not options.out and not runs.is_folder(options.model):
        raise UserError("--out is missing: name the folder to make, --out=FOLDER (a run has a default)")
    out = Path(os.path.realpath(options.out or Path(options.model, "taxonomy")))
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={printable(out)}: it exists and is not a folder; name another")
    if out.is_dir() and (there := sorted(os.listdir(out))):
        raise UserError(
            f"--out={printable(out)}: it holds {len(there)} files already ({printable(there[0])}, ...), "
            "which stay as they are: name another with --out=FOLDER, or remove it first"
        )
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out={printable(out)}: there is no folder {printable(out.parent)}; make it first")
    if not os.access(out.absolute().parent, os.W_OK):
        raise UserError(f"--out={printable(out)}: the folder {printable(out.parent)} cannot be written")
    return out


def _names(names: Sequence[str], title: str) -> list[str]:
    """Class names as text that any file can hold. Raises UserError for one class, and for equal names."""
    if len(names) < 2:
        raise UserError(f"{printable(title)} has {len(names)} class; a taxonomy needs 2 or more")
    shown = [as_unicode(name) for name in names]
    if repeated := taxonomy.repeated(shown):
        raise UserError(
            f"{printable(title)}: {len(repeated)} class names belong to several classes, "
            f"{printable(repeated[0])!r} for one; a taxonomy needs names that differ"
        )
    return shown


# ------------------------------------------------------------------------------------------- codes of images


def _of_codes(options: Options) -> Found:
    """Found from a file of codes. Raises UserError."""
    for flag in ("checkpoint", "num_bits", "codebook", "decoder"):
        if value := getattr(options, flag):
            raise UserError(
                f"--{flag}={printable(str(value))}: {printable(options.model)} holds codes, not a model; "
                "python -m llc.encode MODEL makes others"
            )
    if options.decode == "posterior":
        raise UserError("--decode=posterior: codes.npz holds no fitted decoder; codes are decoded by mhd")
    codes, labels, names, num_bits = _labelled(options.model)
    num_classes = len(names)
    without = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if len(without):
        raise UserError(
            f"{printable(options.model)}: {len(without)} of {num_classes} classes have no image, "
            f"{printable(names[without[0]])} for one, so they have no code; encode images of every class"
        )
    class_codes = majority_codes(codes, labels, num_classes, num_bits)
    found = Found(options.model, class_codes, num_bits, names)
    if options.data == _NONE:
        return found
    if options.data and not options.data.endswith(".npz"):
        raise UserError(
            f"--data={printable(options.data)}: beside codes it is another .npz of the same encoder's codes; "
            "images need a model: python -m llc.encode MODEL makes codes of them"
        )
    if options.data:
        codes, labels, *others = _labelled(options.data)
        if others != [names, num_bits]:
            raise UserError(
                f"--data={printable(options.data)}: its classes or its number of bits are not those of "
                f"{printable(options.model)}; it must be made by the same encoder, with the same classes"
            )
    return dataclasses.replace(
        found,
        data=options.data or options.model,
        num_images=len(codes),
        confusion=taxonomy.confusion_matrix(labels, decode_mhd(codes, class_codes)[:, 0], num_classes),
        decoder="mhd",
    )


def _labelled(path: str) -> tuple[np.ndarray, np.ndarray, list[str], int]:
    """(codes, labels, class names, num_bits) of a file of codes with a label for each. Raises UserError."""
    arrays = read_codes(path)
    codes, labels, names = arrays["codes"], arrays.get("labels"), arrays.get("class_names")
    what = "a taxonomy needs a label for each code: encode labelled images, as those of a beton"
    if labels is None:
        raise UserError(f"{printable(path)}: it holds no labels; {what}")
    if unlabelled := int((labels < 0).sum()):
        raise UserError(f"{printable(path)}: {unlabelled:,} of {len(codes):,} labels are -1; {what}")
    if names is None:
        if labels.max() >= len(codes):
            raise UserError(
                f"{printable(path)}: its labels go up to {labels.max()}, but it has only {len(codes):,} "
                "codes; each class needs some, because their majority is the class's code"
            )
        names = np.arange(int(labels.max()) + 1)
    return codes, labels.astype(np.int64), _names(names.astype("U").tolist(), path), int(arrays["num_bits"])


# ------------------------------------------------------------------------------------------------- a model


def _of_model(options: Options) -> Found:
    """Found from a model's codebook, and from images if there are any. Raises UserError."""
    encoder = load(
        options.model,
        options.codebook or None,
        checkpoint=options.checkpoint or None,
        decoder=options.decoder or None,
        num_bits=options.num_bits or None,
    )
    encoder.check_codes()
    if not len(encoder.codebook):
        raise UserError(
            f"{printable(options.model)} holds no codebook (a model of instance codes has none), so "
            "it has no class codes: give one with --codebook=FILE.npy, or give the codes of images, codes.npz"
        )
    names = _names(encoder.class_names, options.model)
    found = Found(options.model, encoder.class_codes.cpu().numpy(), encoder.num_bits, names)
    data = options.data or _data_of_run(options.model)
    if data in ("", _NONE):
        return found
    return _with_images(found, encoder, data, options)


def _data_of_run(model: str) -> str:
    """A run's data.val_dataset if it exists, else ""."""
    if not runs.is_folder(model):
        return ""
    path = runs.read_config(model).data.val_dataset
    if all(os.path.exists(part) or glob.glob(part) for part in path.split(",")):
        return path
    print(f"{printable(path)}, the run's data.val_dataset, is not there: name images with --data")
    return ""


@torch.inference_mode()
def _with_images(found: Found, encoder: Encoder, data: str, options: Options) -> Found:
    """Adds the confusion and the extreme images. A batch of images is in memory, not all of their z."""
    images = open_for(encoder, data, options, encoder.class_names if encoder.named else None)
    num_classes = len(found.names)
    if images.class_names and len(images.class_names) != num_classes:
        raise UserError(
            f"--data={printable(data)} has {len(images.class_names)} classes, {printable(options.model)} has "
            f"{num_classes}"
        )
    decoder = _decoder(encoder, images, options)
    learnt = encoder.learnt if decoder == "posterior" else {}
    rank, extremes = bind(decoder, encoder.network, learnt), Extremes(encoder.num_bits, options.num_images)
    confusion, broken = np.zeros((num_classes, num_classes), np.int64), []
    thumbnails = Thumbnails()
    with progress.bar(images.num_samples, "encode") as bar, evaluating(encoder.network):
        for batch, of_batch in images.loader:
            z = encoder(batch)
            predicted, labels = rank(z, 1)[0][:, 0].cpu().numpy(), of_batch.cpu().numpy()
            broken.append(non_finite(z).cpu().numpy())
            extremes.add(z.cpu().numpy())
            positions = {*extremes.highest[1].flat, *extremes.lowest[1].flat}
            thumbnails.keep(batch, extremes.num_images - len(batch), positions)
            given = labels >= 0
            confusion += taxonomy.confusion_matrix(labels[given], predicted[given], num_classes)
            bar.update(len(labels))
    files = images.files
    check_finite(np.concatenate(broken), files)
    return dataclasses.replace(
        found,
        data=data,
        num_images=images.num_samples,
        confusion=confusion if confusion.any() else None,
        no_confusion=f"the images of {printable(data)} have no labels",
        decoder=decoder,
        extremes=extremes,
        thumbnails=thumbnails,
        name_of=None if files is None else lambda i: as_unicode(files[i]),
    )


def _decoder(encoder: Encoder, images: Images, options: Options) -> str:
    """The decoder for the confusion: one that learnt from these very images would not confuse them enough."""
    fitted = "posterior" in encoder.learnt
    of_these = encoder.fitted is not None and encoder.fitted.images == images.identity != ""
    if options.decode == "posterior" and (not fitted or of_these):
        why = "it was fitted to these very images" if of_these else "it is not fitted to this model"
        raise UserError(f"--decode=posterior: {why}; take --decode=mhd, or fit it to train images first")
    if options.decode == "auto":
        return "posterior" if fitted and not of_these else "mhd"
    return options.decode


# ------------------------------------------------------------------------------------------------- the files


def _hierarchy(found: Found, options: Options) -> tuple[wordnet.Hierarchy | None, str]:
    """(the hierarchy of the classes, "") or (None, why there is none). Raises UserError."""
    if options.wordnet:
        hierarchy = wordnet.read(options.wordnet)
        if missing := hierarchy.missing(found.names):
            raise UserError(
                f"--wordnet={printable(options.wordnet)}: {len(missing)} of {len(found.names)} classes have "
                f"no line in it, {printable(missing[0])} for one; it needs the names of all classes"
            )
        return hierarchy, ""
    if not all(map(wordnet.is_wordnet_id, found.names)):
        return None, "class names are not WordNet ids (--wordnet=FILE names a hierarchy of other names)"
    hierarchy = wordnet.read()
    if missing := hierarchy.missing(found.names):
        return None, f"{len(missing)} ids are not of ImageNet-1K, {missing[0]} for one (--wordnet=FILE)"
    return hierarchy, ""


def _write_folder(out: Path, contents: Mapping[str, str | bytes]) -> None:
    """Writes files into a folder beside `out`, which then gets its name. Raises UserError."""
    temporary = None
    try:
        temporary = tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}.", suffix=".tmp")
        for name, content in contents.items():
            data = content if isinstance(content, bytes) else content.encode("utf-8")
            Path(temporary, name).write_bytes(data)
        os.chmod(temporary, 0o755)
        os.rename(temporary, out)  # fails if `out` holds something by now
    except OSError as error:
        raise UserError(f"{printable(out)}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    edge.run(main)
