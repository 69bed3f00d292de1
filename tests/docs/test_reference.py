"""The pages of docs/reference: their blocks run, and their tables hold just the keys that the files have."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

import llc
from llc import write
from llc.code_files import read_codes
from llc.data import beton, shards, storage
from llc.data.manifest import load_manifest
from llc.encode import main as encode
from llc.evaluate.__main__ import main as evaluate
from llc.index.__main__ import main as llc_index
from llc.index.array_file import read_arrays
from llc.search import main as search
from llc.training import recovery
from tests.docs.conftest import noise, page
from tests.docs.pages import run_page

FILES, BETON, CODES, INDEX, METRICS = (
    page(f"reference/{name}.md") for name in ("files", "beton", "codes", "index_folder", "metrics")
)
PAGES = {FILES, BETON, CODES, INDEX, METRICS}
PATTERNS = {"…": "", "*": ".*", "NAME": r"\w+", "DECODER": r"\w+", "SCORE": r"\w+"}


def tables(path):
    """{first line of a table: its rows}, each row a list of cells; the first line is joined by ' | '."""
    found = {}
    for block in re.findall(r"^\|.*(?:\n\|.*)*", path.read_text(), re.MULTILINE):
        head, _, *lines = (
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.split("\n")
        )
        found.setdefault(" | ".join(head), []).append(lines)
    return found


def section(path, heading):
    """The text of a page from a heading, or the beginning of a bold one, to the next of its kind."""
    text = path.read_text()
    start = text.index(f"{heading}\n" if heading.startswith("#") else heading)
    end = re.compile(r"^#+ " if heading.startswith("#") else r"^(\*\*[A-Z]|#+ )", re.MULTILINE)
    following = end.search(text, start + len(heading))
    return text[start : following.start() if following else None]


def keys(path, heading, table=0):
    """{key: its row's text} of a table below a heading: all that stands in backticks in the first column."""
    blocks = re.findall(r"^\|.*(?:\n\|.*)*", section(path, heading), re.MULTILINE)
    found = {}
    for line in blocks[table].split("\n")[2:]:
        cell = re.split(r"(?<!\\)\|", line)[1]
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", cell), line)
    assert found, (path.name, heading)
    return found


def check(real, documented):
    """Every real key is in the table, and every key in the table is real, or said to be optional."""
    real = set(real)
    patterns = {
        key: re.compile("".join(PATTERNS.get(part, re.escape(part)) for part in re.split(r"(\*|…)", key)))
        for key in documented
    }
    missing = {key for key in real if not any(pattern.fullmatch(key) for pattern in patterns.values())}
    assert not missing, f"not in the page: {sorted(missing)}"
    for key, row in documented.items():
        assert "optional" in row or any(map(patterns[key].fullmatch, real)), f"no file has {key}: {row}"


def inner(path, heading, key, table=0):
    """The keys in backticks of the cell that explains `key`."""
    row = keys(path, heading, table)[key]
    return set(re.findall(r"`([^`]+)`", re.split(r"(?<!\\)\|", row)[2]))


def run(path, folder, monkeypatch, **options):
    return run_page(path, folder, monkeypatch, **options)


# ---- runs and models


def test_files_of_a_run(workspace, monkeypatch):
    names = run(FILES, workspace, monkeypatch)
    folder = workspace / "runs" / "NAME"
    check({path.name + "/" * path.is_dir() for path in folder.iterdir()} - {"encoder.safetensors"},
          keys(FILES, "## The run folder"))  # fmt: skip
    metrics = set(measures())
    for line in names["log"]:
        of_val = {key for key in line if base(key) in metrics}
        check(set(line) - of_val, keys(FILES, "### log.jsonl"))
        assert of_val and all(0 <= line[key] <= 1 for key in of_val)
    with open(folder / "results.csv", newline="") as file:
        table = list(csv.reader(file))
    check(table[0], keys(FILES, "### results.csv"))
    assert {base(name.split("/")[1]) for name, *_ in table[1:]} <= metrics
    assert names["results"]["instance/top1_mhd_flip"] == float(
        next(final for name, final, *_ in table if name == "instance/top1_mhd_flip")
    )
    codebook = np.load(folder / "codebook.npy")
    assert codebook.dtype == np.float32 and codebook.shape == (6, 10)


def base(name):
    """A metric's name without its endings."""
    return re.sub(r"(_flip)?(_ema)?(@\d+)?$", "", name)


def measures():
    return keys(METRICS, "## Training and evaluation")


def test_the_decoder_file(workspace, monkeypatch):
    names = run(FILES, workspace, monkeypatch)
    with np.load(workspace / "runs/NAME/decoder.npz") as file:
        arrays = dict(file)
    check(arrays, {**keys(FILES, "### decoder.npz"), **keys(FILES, "### decoder.npz", 1)})
    described = json.loads(str(arrays["description"]))
    assert set(described) <= inner(FILES, "### decoder.npz", "description")
    decoder = llc.load("runs/NAME").learnt["posterior"]
    codes = (np.arange(1024) << 6).astype(">u2").view(np.uint8).reshape(-1, 2)  # every code of 10 bits
    ours, theirs = np.stack([names["probabilities"](code) for code in codes]), decoder.decode(codes, 6)
    assert np.allclose(np.take_along_axis(ours, theirs[0], 1), theirs[1], atol=1e-5)
    clear = np.diff(np.sort(ours, axis=1)[:, -2:], axis=1)[:, 0] > 1e-5
    assert clear.sum() > 500 and (ours.argmax(1) == theirs[0][:, 0])[clear].all()


def test_a_decoder_of_long_codes_has_the_arrays_that_the_page_names():
    rng = np.random.default_rng(0)
    codes, labels = rng.integers(0, 256, (200, 4), np.uint8), rng.integers(0, 3, 200)
    decoder = llc.hamming.PosteriorDecoder.fit(codes, labels, 32, 3)
    check({f"posterior.{name}" for name in decoder.arrays}, keys(FILES, "### decoder.npz", 1))
    bits = np.unpackbits(codes, axis=1).astype(np.int64)
    scores = decoder.arrays["offsets"] + bits @ decoder.arrays["weights"].T
    assert np.array_equal(scores.argmax(1), decoder.classes(codes)[:, 0])
    parts = np.exp((scores - scores.max(1, keepdims=True)) / 128)
    assert np.allclose(
        (parts / parts.sum(1, keepdims=True)).max(1), decoder.decode(codes)[1][:, 0], atol=1e-4
    )


def test_checkpoints(finished_run):
    folder = finished_run / "checkpoints"
    check({path.name for path in folder.iterdir()}, keys(FILES, "### checkpoints/"))
    tensors = keys(FILES, "### checkpoints/", 1)
    for name in ("initial", "codebook", "instance", "model_best", "last", "previous_1"):
        content = torch.load(folder / f"{name}.pth", weights_only=True)
        check(content["network"], tensors)
        if name in ("last", "previous_1"):
            state = keys(FILES, "### checkpoints/", 2)
            check(content, state)
            for key in ("identity", "progress"):
                assert set(content[key]) == inner(FILES, "### checkpoints/", key, 2) - {"log.jsonl"}
            engine = content["engine"] or {}
            assert set(engine) <= inner(FILES, "### checkpoints/", "engine", 2)
        else:
            what = keys(FILES, "### checkpoints/")[f"{name}.pth"].split("|")[2]
            assert set(content) == set(re.findall(r"`([^`]+)`", what)) - {"training.ema_decay"}
    assert torch.load(folder / "previous_1.pth", weights_only=True)["engine"]["optimizer"]


def test_the_report_of_a_loss_that_is_not_finite():
    """Its keys are those that the code writes; a run with such a loss is in tests/training."""
    source = Path(recovery.__file__).read_text()
    written = re.search(r"content = \{(.*?)\n    \}", source, re.DOTALL)[1]
    check(re.findall(r'^        "(\w+)":', written, re.MULTILINE), keys(FILES, "### checkpoints/", 3))


def test_the_saved_encoder(workspace, monkeypatch):
    names = run(FILES, workspace, monkeypatch)
    check(names["model"], keys(FILES, "## The saved encoder"))
    for key in ("network", "preprocessing"):
        assert set(names["model"][key]) == inner(FILES, "## The saved encoder", key) - {
            '"learnable"', "area", "bilinear",
        }  # fmt: skip
    path = workspace / "runs/NAME/encoder.safetensors"
    assert set(names["header"]["__metadata__"]) == {"llc"}
    tensors = {name for name in safetensors.numpy.load_file(path) if not name.startswith("fitted.")}
    check(tensors, keys(FILES, "### checkpoints/", 1))
    fitted = {name.removeprefix("fitted.") for name in names["header"] if name.startswith("fitted.")}
    check(fitted | {"description"}, keys(FILES, "### decoder.npz"))
    assert set(names["model"]["fitted"]) <= inner(FILES, "### decoder.npz", "description")


def test_the_folder_for_the_hub(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    from llc import hub
    from llc.export.__main__ import main as export

    export(["runs/NAME", "--to=hub"])
    folder, heading = workspace / "runs/NAME/hub", "## The folder for the Hub"
    check({path.name for path in folder.iterdir()}, keys(FILES, heading))
    content = json.loads((folder / "config.json").read_text("ascii"))
    check(content, keys(FILES, heading, 1))
    assert (content["library_name"], content["format"]) == ("llc", 1) and len(content["readme_sha256"]) == 64
    said = re.search(r"A reader that finds (.*?) other than", section(FILES, heading), re.DOTALL)
    assert set(re.findall(r"`(\w+)`", said[1])) == set(hub.SAME)
    assert {"logging", "dist"}.isdisjoint(content["recipe"])


def test_the_form_of_the_original(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    from llc.export.__main__ import main as export

    for checkpoint in ("codebook", "instance"):
        export(["runs/NAME", "--to=original", f"--checkpoint={checkpoint}"])
        content = torch.load("runs/NAME/original/model_best.pth", weights_only=True)
        assert set(content) == {"arch", "state_dict"}
        special = keys(FILES, "## The original's form", 1)
        own = {name for name in content["state_dict"] if name in special}
        check(own, special)
        assert ("module.fc.weight" in own) == (checkpoint == "codebook")
        assert all(name.startswith("module.") for name in content["state_dict"])
    assert np.load("runs/NAME/original/codebook.npy").dtype == np.float32


def test_figures_and_scores(workspace, image_tree, monkeypatch):
    monkeypatch.chdir(workspace)
    noise(workspace / "noise", np.random.default_rng(0))
    evaluate(
        [
            "runs/NAME",
            "--data.val_dataset=val.beton",
            "--retrieval.database=train.beton",
            "--ood.dataset=noise",
            "--json=figures.json",
            "--predictions=predictions.npz",
            "--retrieval.csv=curves.csv",
            "--ood.scores=scores.npz",
        ]
    )
    text = METRICS.read_text()
    figures = json.loads((workspace / "figures.json").read_text())
    for name in figures:
        group, _, metric = name.partition(".")
        if group == "retrieval":
            plain = re.sub(r"@\d+", "@K" if metric.startswith(("map", "tied")) else "@N", metric)
            assert f"`retrieval.{plain}`" in text or re.match(
                r"map(@K)?\.(hashnet|deephash|orthohash|strict)", plain
            )
        elif group == "ood":
            of_set = metric.removeprefix("noise.").split(".")
            if of_set == ["num_tuning"]:
                continue
            measure, score = of_set
            assert f"`{re.sub('_(keep95|all)$', '', measure)}`" in text and f"`{score}`" in text
        else:
            assert base(metric) in measures(), name
    with np.load("predictions.npz") as file:
        shapes = {name: file[name].dtype for name in file.files}
    assert {"labels", "codes", "top_mhd", "probability_posterior"} <= set(shapes)
    assert all(re.fullmatch(r"labels|codes|(top|probability)_\w+", name) for name in shapes)
    with open("curves.csv", newline="") as file:
        head, *points = csv.reader(file)
    row = section(FILES, "## Figures, curves, scores").split("--retrieval.csv` | ")[1]
    assert re.findall(r"`(\w+)`", row)[: len(head)] == head
    assert {place for place, *_ in points} == {"k", "distance"}
    with np.load("scores.npz") as file:
        described = json.loads(str(file["description"]))
        scores = set(file.files) - {"description"}
        assert {name.split(".")[0] for name in scores} == {"evaluated", "noise"}
        assert all(file[name].dtype == np.float64 for name in scores)
    row = section(FILES, "## Figures, curves, scores").split("`description` is a text")[1]
    assert list(described) == re.findall(r"`(\w+)`", row)[: len(described)]
    with np.load("runs/NAME/decoder.npz") as file:
        network = json.loads(str(file["description"]))["network"]
    assert described["network"] == points[0][head.index("network")] == network[:16]


def test_a_learnt_metric_has_its_row(finished_run):
    with open(finished_run / "results.csv", newline="") as file:
        real = {base(row["metric"].split("/")[1]) for row in csv.DictReader(file)}
    check(real | {"top1_NAME"}, measures())


# ---- betons


def test_a_beton(workspace, monkeypatch):
    names = run(BETON, workspace, monkeypatch)
    opened = shards.open_shards(workspace / "train.beton")
    assert np.array_equal(names["samples"]["label"], opened.labels)
    for i in range(0, len(opened), 7):
        assert names["stored"](i).tobytes() == bytes(storage.read_sample(opened, i))
    modes = opened.images["mode"]
    for i in (int(np.argmax(modes == 0)), int(np.argmax(modes == 1))):
        assert names["pixels"](i).shape == (opened.images["height"][i], opened.images["width"][i], 3)
    assert names["names"][0] == load_manifest("train.beton").class_names[opened.labels[0]]
    for heading, dtype in (("**Header.**", beton.HEADER_TYPE), ("**Field descriptors**", beton.FIELD_TYPE),
                           ("**Allocation table.**", beton.ALLOC_TYPE)):  # fmt: skip
        assert list(keys(BETON, heading)) == list(dtype.names), heading
    fields = [*beton.IMAGE_TYPE.names, "label"]
    offsets = [beton.IMAGE_TYPE.fields[name][1] for name in fields[:-1]] + [
        beton.METADATA_TYPE.fields["f1"][1]
    ]
    cells = [row.split("|")[3].strip() for row in keys(BETON, "**Metadata.**").values()]
    assert list(keys(BETON, "**Metadata.**")) == fields and cells == list(map(str, offsets))
    assert beton.METADATA_START == 2106 and beton.METADATA_TYPE.itemsize == beton.ALLOC_TYPE.itemsize == 24
    jpeg = names["stored"](int(np.argmax(modes == 0))).tobytes()
    place = jpeg.index(b"\xff\xdd")  # DRI: length, then how many MCUs lie between two markers
    assert int.from_bytes(jpeg[place + 4 : place + 6], "big") == 4


def test_a_manifest(image_tree, workspace):
    manifest = json.loads((workspace / "train.beton.json").read_text())
    check(manifest, keys(BETON, "## The manifest"))
    needed = re.search(r"A reader needs (.*?); the others", BETON.read_text(), re.DOTALL)[1]
    needed = set(re.findall(r"`(\w+)`", needed))
    assert set(manifest) - needed == {"samples_per_checksum", "checksums", "class_words", "order", "part"}
    path = workspace / "train.beton.json"
    path.write_text(json.dumps({key: manifest[key] for key in needed}))
    assert load_manifest("train.beton" if path.parent == "." else path).num_samples == manifest["num_samples"]


def test_parts_of_a_beton(image_tree, workspace):
    whole = shards.open_shards(workspace / "train.beton").labels
    path = workspace / "part.beton"
    write.main(
        [f"--cfg.data_dir={image_tree}", "--cfg.part=2/3", f"--cfg.write_path={path}", "--cfg.num_workers=1"]
    )
    assert json.loads((workspace / "part.beton.json").read_text())["part"] == [2, 3]
    assert np.array_equal(beton.read_tables(path).labels, whole[1::3])


# ---- codes


def test_codes(workspace, monkeypatch):
    names = run(CODES, workspace, monkeypatch)
    arrays = read_codes("codes.npz")
    check(arrays, keys(CODES, "## codes.npz"))
    assert arrays["codes"].dtype == np.uint8 and np.array_equal(names["codes"], arrays["codes"])
    distances, indices = llc.hamming.search(arrays["codes"][:1], arrays["codes"], 66)
    assert np.array_equal(names["nearest"], indices[0])
    assert np.array_equal(names["distances"][names["nearest"]], distances[0])
    assert np.array_equal(llc.pack_bits(names["z"]), names["packed"])
    encode(["runs/NAME", "--data=photos", "--out=named.npz"])
    assert "files" in read_codes("named.npz")
    with np.load("neighbours.npz") as file:
        assert {name: file[name].dtype for name in file.files} == {"distances": np.int32, "indices": np.int64}


@pytest.mark.parametrize(
    "changes",
    [
        {"codes": np.ones((3, 2), np.int64)},
        {"codes": np.ones((3, 3), np.uint8)},
        {"codes": np.ones((3, 2), np.uint8)},  # a padding bit is 1
        {"labels": np.array([0, 1, -2])},
        {"labels": np.array([0.0, 1, 1])},
        {"labels": np.arange(3), "class_names": np.array(["a", "b"])},
        {"labels": np.arange(3) % 2, "class_names": np.array(["a", "a"])},
    ],
)
def test_foreign_codes_that_are_refused(tmp_path, changes):
    good = {"codes": np.zeros((3, 2), np.uint8), "num_bits": 12, "labels": np.zeros(3, np.int8)}
    np.savez(tmp_path / "good.npz", **good)
    read_codes(tmp_path / "good.npz")
    np.savez(tmp_path / "bad.npz", **good | changes)
    with pytest.raises(llc.errors.UserError):
        read_codes(tmp_path / "bad.npz")


# ---- indexes


def test_the_folder_of_an_index(workspace, monkeypatch):
    names = run(INDEX, workspace, monkeypatch)
    folder = workspace / "PHOTOS.index"
    real = {re.sub(r"\d{4}\b", lambda at: "0001", path.name) for path in folder.iterdir()}
    real = {re.sub(r"kept-\d+-\d+", "kept-00000007-0001", name) for name in real}
    check(real, keys(INDEX, "# The folder of an index"))
    check(names["manifest"], keys(INDEX, "## index.json"))
    for stored in names["manifest"]["segments"]:
        assert set(stored) == {"file", "checksum", "kept_file"}
    with llc.Index.open(folder) as index:
        order = np.argsort(names["ids"])
        assert np.array_equal(names["ids"][order], index.ids)
        assert np.array_equal(names["codes"][order], index.get(index.ids))
    assert set(names["manifest"]["model"]) == {"digest", "file"}
    kept = read_arrays(folder / names["manifest"]["segments"][0]["kept_file"], None)
    assert list(kept[1]) == list(keys(INDEX, "## Removed rows"))
    assert set(kept[0]) == {"version", "num_rows", "num_removed", "of", "arrays"}
    llc_index(["duplicates", "PHOTOS.index", "--radius=3", "--json=groups.json"])
    for group in json.loads((workspace / "groups.json").read_text()):
        check(group, keys(INDEX, "## Groups of near-duplicates"))


def test_found_images(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    llc_index(["create", "PHOTOS.index", "photos", "--model=runs/NAME"])
    llc_index(["export", "PHOTOS.index", "--to=npz", "--out=exported.npz"])
    check(read_codes("exported.npz"), keys(CODES, "## codes.npz"))
    documented = keys(CODES, "## The results of a search", 1)
    for own in ((), ("--radius=3",)):
        search(["PHOTOS.index", "cat.jpg", "--k=3", "--json=found.json", "--out=found.npz", *own])
        found = json.loads((workspace / "found.json").read_text())
        check({*found, *found["queries"][0]} - {"query"}, documented)
        assert set(found["queries"][0]["neighbours"][0]) == {"id", "distance", "label", "file"}
        with np.load("found.npz") as file:
            dtypes = {name: file[name].dtype for name in file.files}
        assert dtypes == {"distances": np.int32, "ids": np.int64} | ({"lims": np.int64} if own else {})


def test_a_segment_with_tables(tmp_path, monkeypatch):
    """Read by the page's own function: each table holds each row once, in the bucket of its code."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (16, 8), np.uint8)[rng.integers(0, 16, 30000)]
    codes ^= np.packbits(rng.random((30000, 64)) < 0.05, axis=1)
    index = llc.Index(num_bits=64)
    ids = np.sort(rng.choice(10**6, 30000, replace=False))
    index.add(codes, ids, labels=np.arange(30000) % 5, files=[f"{i}" for i in range(30000)],
              sizes=np.ones(30000, np.int64), modified=np.ones(30000, np.int64))  # fmt: skip
    index.save(tmp_path / "big.index")
    source = next(
        b for b in re.findall(r"```python\n(.*?)```", INDEX.read_text(), re.DOTALL) if "def read" in b
    )
    names = {"json": json}
    exec(source.split("\n\nheader, arrays")[0], names)
    header, arrays = names["read_arrays"](tmp_path / "big.index" / "segment-00000001.llc")
    named = {
        re.sub(r"^offsets\d", "offsets0", re.sub(r"^positions\d", "positions1", name)) for name in arrays
    }
    check(named, keys(INDEX, "## A segment", 1))
    check(header, keys(INDEX, "## A segment"))
    check(header["arrays"]["codes"], keys(INDEX, "## A file of arrays", 1))
    bits = np.unpackbits(arrays["codes"], axis=1)
    for i, of_table in enumerate(header["tables"]):
        buckets = bits[:, of_table] @ (1 << np.arange(len(of_table))[::-1])
        positions = arrays.get(f"positions{i}", np.arange(30000))
        assert np.array_equal(
            np.repeat(np.arange(1 << len(of_table)), np.diff(arrays[f"offsets{i}"])), buckets[positions]
        )
    assert np.array_equal(arrays["codes"][arrays["order"]], codes)
    assert np.array_equal(arrays["order"][arrays["ranks"]], np.arange(30000))
    ends = arrays["name_ends"]
    assert arrays["names"][ends[6] : ends[7]].tobytes() == b"7"


def test_every_file_of_arrays_is_checked_against_its_own_reader(workspace, monkeypatch):
    names = run(INDEX, workspace, monkeypatch)
    for path in (workspace / "PHOTOS.index").glob("*.llc"):
        header, arrays = names["read_arrays"](path)
        expected_header, expected = read_arrays(path, None)
        assert header == expected_header and set(arrays) == set(expected)
        assert all(np.array_equal(arrays[name], expected[name]) for name in expected)
