"""The Hugging Face Hub, both ways: the folder that is written, its card, and a Hub on loopback."""

import contextlib
import csv
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from huggingface_hub.repocard_data import model_index_to_eval_results

import llc
from llc import checkpoints
from llc.data.preprocessing import Preprocessing
from llc.errors import UserError
from llc.evaluation.metrics import name as metric_name
from llc.export import __main__ as export
from llc.export import hub as written
from llc.network import IMAGENET_MEAN, IMAGENET_STD, Network

FILES = {"model.safetensors", "config.json", "README.md"}
CARD = ("--repo=someone/stripes-10", "--license=mit", "--datasets=someone/stripes")


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """The finished run with other figures, no two of which are equal: its own are nearly all 1."""
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("runs") / "run")
    with open(run / "results.csv", newline="") as file:
        head, *rows = csv.reader(file)
    values = {row[0]: round(0.3 + i / 1001, 6) for i, row in enumerate(rows)}
    with open(run / "results.csv", "w", newline="") as file:
        csv.writer(file).writerows([head, *([row[0], values[row[0]], *row[2:]] for row in rows)])
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = {line["stage"]: line for line in lines}
    for name, value in values.items():
        stage, _, metric = name.partition("/")
        if metric in last[stage]:
            last[stage][metric] = value
    (run / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return run


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The folder of that run; not to be changed."""
    folder = tmp_path_factory.mktemp("hub") / "stripes"
    export.main([str(run), "--to=hub", f"--out={folder}", *CARD])
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy to change."""
    return shutil.copytree(exported, tmp_path / "stripes")


def images(image_tree):
    return sorted((image_tree / "val").glob("class_*/*"))


# ------------------------------------------------------------------------------------------------ the folder


def test_a_folder_loads_as_the_run_does(exported, finished_run, image_tree):
    run, ours, paths = llc.load(finished_run), llc.load(exported), images(image_tree)
    assert {path.name for path in exported.iterdir()} == FILES
    codes = ours.encode(paths)
    assert torch.equal(codes, run.encode(paths)) and len(codes.unique(dim=0)) > 4
    assert torch.equal(ours.codebook, run.codebook)
    for decode in ("class", "mhd", "ed", "posterior"):
        expected, found = run.classify(paths, decode), ours.classify(paths, decode)
        assert torch.equal(found.labels, expected.labels) and torch.equal(found.scores, expected.scores)
        assert found.names == expected.names
    assert ours.stage == "instance" and ours.flip == run.flip and ours.named
    assert llc.load(exported, num_bits=4).num_bits == 4
    weights = exported / "model.safetensors"
    assert torch.equal(llc.load(weights).encode(paths[:3]), codes[:3])  # it is a saved encoder by itself


def test_commands_take_a_folder(exported, finished_run, betons, call_llc, tmp_path):
    """llc.evaluate measures what it measures of the run; llc.taxonomy asks for a place to write to."""
    figures = {}
    for model in (exported, finished_run):
        words = ["llc.evaluate", model, f"--data.val_dataset={betons[1]}", f"--json={tmp_path / 'x.json'}"]
        call_llc(*words)
        figures[model] = json.loads((tmp_path / "x.json").read_text())
    of_run = {key: value for key, value in figures[finished_run].items() if key.startswith("instance.")}
    assert figures[exported] == of_run and of_run["instance.top1_posterior_flip"] > 0.3
    said = call_llc("llc.taxonomy", exported, check=False)
    assert said.returncode == 2 and "--out is missing" in said.stderr
    said = call_llc("llc.evaluate", exported, f"--data.val_dataset={betons[1]}",
                    f"--json={exported / 'config.json'}", check=False)  # fmt: skip
    assert said.returncode == 2 and "part of the run" in said.stderr


def test_no_file_names_a_folder_of_this_machine(exported, run, betons):
    """Not those of the recipe and of the decoder, which the run has."""
    assert str(betons[0]) in (run / "config.yaml").read_text()
    assert str(betons[0]) in str(np.load(run / "decoder.npz")["description"])
    for path in exported.iterdir():
        content = path.read_bytes()
        assert b"train.beton" in content
        for part in {*run.parents, *betons[0].parents} - {Path("/")}:
            assert os.fsencode(part) not in content, (path.name, part)
    recipe = llc.load(exported).recipe
    assert recipe["data"]["train_dataset"] == "train.beton" and "logging" not in recipe
    assert recipe["codes"] == json.loads(json.dumps(llc.load(run).recipe["codes"]))


def test_paths_in_recipes_lose_their_folders():
    keys = {
        "weights": "/home/anna/runs/pre/",
        "several": r"C:\data\a.beton,b/c-*.beton",
        "arch": "timm:hf_hub:timm/x",
        "hub": "hf://a/b@v1",
        "name": "IMAGENET1K_V1",
        "list": ["x/y"],
        "nan": float("nan"),
        "lr": 0.5,
    }
    assert written._without_folders(keys) == {
        "weights": "pre",
        "several": "a.beton,c-*.beton",
        "arch": "timm:hf_hub:timm/x",
        "hub": "hf://a/b@v1",
        "name": "IMAGENET1K_V1",
        "list": ["y"],
        "nan": "nan",
        "lr": 0.5,
    }


def test_the_description(exported, finished_run):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    config = json.loads((exported / "config.json").read_text("ascii"), parse_constant=refuse)
    encoder = llc.load(finished_run)
    assert config["network"] == encoder.network.options
    assert config["preprocessing"]["resolution"] == encoder.preprocessing.resolution
    assert config["class_names"] == list(encoder.class_names)
    assert (config["num_bits"], config["code_size"], config["num_classes"]) == (10, 2, 6)
    assert (config["library_name"], config["llc_version"], config["stage"]) == (
        "llc",
        llc.__version__,
        "instance",
    )
    assert config["decoders"] == ["class", "mhd", "ed", "posterior"]


# --------------------------------------------------------------------------------------------- the model card


def results(run):
    with open(run / "results.csv", newline="") as file:
        return {row["metric"]: float(row["final"]) for row in csv.DictReader(file)}


def test_the_card_is_one_for_huggingface_hub(exported, run):
    """Its metadata are read back by huggingface_hub, and its figures are those of results.csv."""
    card = huggingface_hub.ModelCard.load(exported / "README.md")
    data = huggingface_hub.metadata_load(exported / "README.md")
    assert (data["library_name"], data["license"]) == ("llc", "mit")
    assert data["pipeline_tag"] == "image-feature-extraction"
    assert data["datasets"] == ["someone/stripes"] and data["metrics"] == ["accuracy"]
    again = huggingface_hub.ModelCardData(**{key: value for key, value in data.items()})
    assert again.to_dict() == card.data.to_dict() == data
    name, found = model_index_to_eval_results(data["model-index"])
    assert name == "stripes-10" and {one.dataset_type for one in found} == {"someone/stripes"}
    values, final = {one.metric_name: one.metric_value for one in found}, results(run)
    expected = {
        f"top-{k} accuracy, {title}": final[f"instance/{metric_name(f'top{k}', decoder, True)}"]
        for decoder, title in (
            ("class", "class codes"),
            ("mhd", "MHD"),
            ("ed", "ED"),
            ("posterior", "posterior"),
        )
        for k in (1, 5)
        if (decoder, k) != ("ed", 5)
    }
    assert values == expected and len({*values.values()}) == 7
    for value in expected.values():
        assert f"{100 * value:.2f} %" in card.text
    assert "66 images of `val.beton`" in card.text and "240 images of `train.beton`" in card.text


def test_the_cards_code_runs(exported, image_tree, tmp_path, monkeypatch):
    text = (exported / "README.md").read_text()
    for name, path in zip(("cat.jpg", "dog.jpg"), sorted((image_tree / "val").glob("class_*/000.jpg"))):
        shutil.copy(path, tmp_path / name)
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert 'llc.load("hf://someone/stripes-10")' in code
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace("hf://someone/stripes-10", str(exported)), names)
    assert names["codes"].shape == (2, 2) and len(names["classes"].names[0]) == 3


def test_without_options_the_card_invents_nothing(run, tmp_path, capsys):
    export.main([str(run), "--to=hub", f"--out={tmp_path / 'x'}", "--checkpoint=codebook"])
    said, data = capsys.readouterr().out, huggingface_hub.metadata_load(tmp_path / "x/README.md")
    assert "--license=ID" in said and "--repo=OWNER/NAME" in said
    assert not {"license", "datasets"} & set(data)
    _, found = model_index_to_eval_results(data["model-index"])
    assert {(one.dataset_type, one.dataset_name) for one in found} == {("unknown", "val.beton")}
    values = {one.metric_name: one.metric_value for one in found}
    assert values["top-1 accuracy, class codes"] == results(run)["codebook/top1_class_flip"]
    assert "top-1 accuracy, posterior" not in values  # what was fitted was fitted to another network


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--checkpoint=initial"], "the run does not keep figures of its checkpoint initial"),
        (["--num_bits=4"], "the run's figures are for all 10 bits"),
        (["--codebook={run}/codebook.npy"], "the run's figures are for another codebook"),
    ],
)
def test_a_card_has_no_figures_where_the_run_measured_another_model(
    words, why, finished_run, tmp_path, capsys
):
    words = [word.format(run=finished_run) for word in words]
    export.main([str(finished_run), "--to=hub", f"--out={tmp_path / 'x'}", *words])
    text = (tmp_path / "x/README.md").read_text()
    assert why in capsys.readouterr().out and why in text
    assert "model-index" not in text and not re.search(r"\| \d+\.\d\d %", text)


def test_a_decoder_that_was_fitted_to_other_images_has_no_figure(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    arrays = dict(np.load(run / "decoder.npz"))
    described = json.loads(str(arrays["description"])) | {"source": "other.beton"}
    np.savez(run / "decoder.npz", **arrays | {"description": np.array(json.dumps(described))})
    export.main([str(run), "--to=hub"])
    text = (run / "hub/README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith('| `"posterior"`'))
    assert "not measured" in row and "%" not in row and "of `other.beton`" in text
    assert "%" in next(line for line in text.splitlines() if line.startswith('| `"mhd"`'))


def test_a_model_without_a_codebook_a_recipe_and_names(tmp_path, monkeypatch):
    """A model of a single file, of more bits than a byte has, with odd names and no run."""
    monkeypatch.chdir(tmp_path)
    preprocessing = Preprocessing(24, 0.5, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    bare = llc.Encoder(Network("resnet18", 9, 0, width=8), preprocessing)
    names, recipe = ["a|`b`\n", "naïve \udcff"], {"codes": 3, "x": float("inf")}
    odd = llc.Encoder(Network("resnet18", 9, 2, width=8), preprocessing, names, recipe=recipe)
    for name, encoder in (("bare", bare), ("odd", odd)):
        encoder.save(f"{name}.safetensors")
        export.main([f"{name}.safetensors", "--to=hub", f"--out={name}"])
        text = (tmp_path / name / "README.md").read_text("utf-8")
        assert "recorded" in text and "last 7 bits of a code are always 0" in text
        assert "resized to 48 pixels" in text
        images = torch.randint(0, 256, (4, 3, 40, 50), dtype=torch.uint8)
        assert torch.equal(llc.load(name).encode(images), encoder.eval().encode(images))
    assert "classif" not in (tmp_path / "bare/README.md").read_text().split("---")[2].replace(
        "cannot classify", ""
    )
    assert llc.load("odd").class_names == odd.class_names
    assert "`a|'b'\\n`" in text


# ------------------------------------------------------------------------------------- folders that are there


def test_an_earlier_export_is_replaced_and_nothing_else(folder, finished_run, tmp_path):
    (folder / ".gitattributes").write_text("kept")
    export.main([str(finished_run), "--to=hub", f"--out={folder}", "--checkpoint=codebook"])
    assert llc.load(folder).stage == "codebook" and (folder / ".gitattributes").read_text() == "kept"
    assert {path.name for path in folder.iterdir()} == FILES | {".gitattributes"}
    for entries in ((), (".git",)):  # the folder stays the same one, for whoever works in it
        for name in ("clone", *(f"clone/{entry}" for entry in entries)):
            (tmp_path / name).mkdir()
        clone = tmp_path / "clone"
        inode = clone.stat().st_ino
        export.main([str(finished_run), "--to=hub", f"--out={clone}"])
        assert {path.name for path in clone.iterdir()} == FILES.union(entries)
        assert clone.stat().st_ino == inode
        shutil.rmtree(clone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "README.md").write_text("mine"), "README.md was changed after"),
        (lambda folder: (folder / "config.json").write_text("{}"), "not an earlier export"),
        (lambda folder: [(folder / name).rename(folder / f"{name}.x") for name in FILES], "it is not empty"),
    ],
    ids=["card", "config", "other"],
)
def test_a_folder_with_something_else_stays_as_it_is(change, message, folder, finished_run):
    change(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=message):
        export.main([str(finished_run), "--to=hub", f"--out={folder}"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_cannot_be_written_is_said(folder, finished_run, tmp_path, monkeypatch):
    def refused(message, *words):
        with pytest.raises(UserError, match=message):
            export.main([str(finished_run), "--to=hub", *words])

    (tmp_path / "file").touch()
    refused("not a folder", f"--out={tmp_path / 'file'}")
    refused("there is no folder", f"--out={tmp_path / 'no/where'}")
    refused("nothing is uploaded", "--out=hf://a/b")
    refused("expected OWNER/NAME", f"--out={tmp_path / 'x'}", "--repo=a")
    refused("such as mit", f"--out={tmp_path / 'x'}", "--license=The MIT licence")
    refused("expected names of data sets", f"--out={tmp_path / 'x'}", "--datasets=/data/train.beton")
    with pytest.raises(UserError, match="--license is for --to=hub"):
        export.main([str(finished_run), "--to=encoder", "--license=mit"])
    with pytest.raises(UserError, match="export from the run again"):
        export.main([str(folder), "--to=hub", f"--out={folder}"])
    before = set(tmp_path.iterdir())
    with monkeypatch.context() as patch:

        def full(path, write):
            raise OSError(28, "No space left on device")

        patch.setattr(written, "atomic_write", full)
        refused("No space left on device", f"--out={tmp_path / 'x'}")
    assert set(tmp_path.iterdir()) == before  # no folder, and nothing beside it
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "huggingface_hub", None)
        refused(r"pip install 'llcodes\[hub\]'", f"--out={tmp_path / 'x'}")


# -------------------------------------------------------------------------------------------- damaged folders


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_other_weights(folder):
    """As two exports of one recipe that were mixed, without a decoder, which would be refused already."""
    encoder = llc.load(folder)
    encoder.fitted = None
    encoder.network.projection.weight.data *= -1
    encoder.save(folder / "model.safetensors")


def pickled(folder):
    torch.save({"x": torch.zeros(1)}, folder / "model.safetensors")


def shorten(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_description(folder):
    path = folder / "model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(path), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorten, "model.safetensors: not a whole safetensors file"),
        (pickled, "model.safetensors: not a whole safetensors file"),
        (with_other_weights, "config.json was written for other weights"),
        (without_description, "not an encoder saved by llc, only tensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: damaged: it is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[" * 100000), "config.json: damaged"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "config.json: damaged"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": ""}'), "not of a model of llc"),
        (lambda folder: edit(folder, format=2), "its format is 2; this version of llc reads 1"),
        (lambda folder: edit(folder, class_names=["x"] * 6), "disagree on class_names"),
        (lambda folder: edit(folder, flip=False, stage=None), "disagree on flip, stage"),
        (
            lambda folder: (folder / "model.safetensors").write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
            ),
            "a Git LFS pointer",
        ),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused(change, message, folder):
    change(folder)
    with pytest.raises(UserError, match=re.escape(message)):
        llc.load(folder)


def test_a_folder_is_one_model(exported):
    with pytest.raises(UserError, match="is one model; only a run folder holds several"):
        llc.load(exported, checkpoint="codebook")


def test_a_folder_gives_weights_to_start_from(exported, finished_run):
    network, trained = Network("resnet18", 10, 6, width=8), llc.load(finished_run).network
    assert "network weights from" in checkpoints.load_weights(network, str(exported), "resnet18")
    assert all(
        torch.equal(a, b) for a, b in zip(network.backbone.parameters(), trained.backbone.parameters())
    )


# ------------------------------------------------------------------------------------------ a Hub on loopback


class Repositories(BaseHTTPRequestHandler):
    """Answers as the Hub does for files of {OWNER/NAME: {revision: folder}}, and notes what was asked for."""

    protocol_version = "HTTP/1.1"

    def __init__(self, repositories, asked, *arguments):
        self.repositories, self.asked = repositories, asked
        super().__init__(*arguments)

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        self.asked.append(self.path)
        if match is None:
            return self.refuse(400, "")
        repository, revision, name = match.groups()
        if repository == "someone/gated":
            return self.refuse(403, "GatedRepo")
        if repository == "someone/broken":
            return self.refuse(500, "")
        if repository not in self.repositories:
            return self.refuse(401, "RepoNotFound")
        of_repository = self.repositories[repository]
        commits = {commit(revision): folder for revision, folder in of_repository.items()}
        folder = of_repository.get(revision) or commits.get(revision)
        if folder is None:
            return self.refuse(404, "RevisionNotFound")
        is_commit = {path: sha for sha, path in commits.items()}[folder]
        if not (folder / name).is_file():
            return self.refuse(404, "EntryNotFound", is_commit)
        content = (folder / name).read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", is_commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def refuse(self, status, code, is_commit=None):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if is_commit:
            self.send_header("X-Repo-Commit", is_commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


def commit(revision):
    return hashlib.sha1(revision.encode()).hexdigest()


def use(patch, url, cache):
    """Lets huggingface_hub, which read its environment when it was imported, ask there."""
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setenv("NO_PROXY", "127.0.0.1")


@contextlib.contextmanager
def serving(repositories):
    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Repositories, repositories, asked))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def the_hub(exported, finished_run, tmp_path, monkeypatch):
    """A Hub with someone/stripes in two versions, and others not of llc; yields what it was asked."""
    old, foreign, empty = tmp_path / "old", tmp_path / "foreign", tmp_path / "empty"
    export.main([str(finished_run), "--to=hub", "--checkpoint=codebook", f"--out={old}"])
    new = shutil.copytree(exported, tmp_path / "new")
    (new / "pytorch_model.bin").write_bytes(b"a pickle")
    for path in (foreign, empty):
        path.mkdir()
    (foreign / "config.json").write_text('{"model_type": "vit"}')
    (foreign / "model.safetensors").write_bytes(b"large")
    (broken := shutil.copytree(exported, tmp_path / "damaged"))
    shorten(broken)
    repositories = {
        "someone/stripes": {"main": new, "v1": old},
        "someone/vit": {"main": foreign},
        "someone/empty": {"main": empty},
        "someone/damaged": {"main": broken},
    }
    with serving(repositories) as (url, asked):
        use(monkeypatch, url, tmp_path / "cache")
        yield asked


def names_of(asked):
    return {path.split("/")[-1] for path in asked if "/resolve/" in path}


def test_a_repository_loads_by_its_address(the_hub, exported, image_tree, betons, call_llc, tmp_path):
    paths = images(image_tree)[::5]
    encoder = llc.load("hf://someone/stripes")
    assert torch.equal(encoder.encode(paths), llc.load(exported).encode(paths))
    assert encoder.stage == "instance" and "posterior" in encoder.learnt
    assert names_of(the_hub) == {"config.json", "model.safetensors"}  # no card, and no pickle
    for address in ("hf://someone/stripes@v1", f"hf://someone/stripes@{commit('v1')}"):
        assert llc.load(address).stage == "codebook"
    out = tmp_path / "codes.npz"
    call_llc("llc.encode", "hf://someone/stripes", f"--data={betons[1]}", f"--out={out}")
    assert len(np.load(out)["codes"]) == 66
    said = call_llc("llc.evaluate", "hf://someone/stripes", f"--data.val_dataset={betons[1]}",
                    f"--fit_decoder={betons[0]}", check=False)  # fmt: skip
    assert said.returncode == 2 and "--decoder=FILE.npz" in said.stderr
    network = Network("resnet18", 10, 6, width=8)
    assert "network weights" in checkpoints.load_weights(network, "hf://someone/stripes", "resnet18")
    export.main(["hf://someone/stripes", "--to=encoder", f"--out={tmp_path / 'one.safetensors'}"])
    assert llc.load(tmp_path / "one.safetensors").named


def test_without_a_network_the_cache_is_used(the_hub, exported, tmp_path, monkeypatch, image_tree):
    path = images(image_tree)[0]
    codes = llc.load("hf://someone/stripes").encode(path)
    closed = "http://127.0.0.1:9"  # nothing listens there
    use(monkeypatch, closed, tmp_path / "cache")

    def wait(seconds):
        raise AssertionError("a retry")

    monkeypatch.setattr(time, "sleep", wait)
    assert torch.equal(llc.load("hf://someone/stripes").encode(path), codes)
    for name in ("hf://someone/stripes@v1", "hf://someone/other"):
        with pytest.raises(
            UserError, match="the Hub cannot be reached .* the cache has no copy.*hf download"
        ):
            llc.load(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        llc.load("hf://someone/other")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://someone/none", "someone/none does not exist, or is private"),
        ("hf://someone/gated", "is gated: ask for access"),
        ("hf://someone/stripes@v9", "has no revision v9"),
        ("hf://someone/empty", "is not of llc: config.json or model.safetensors is missing"),
        ("hf://someone/vit", "not of a model of llc"),
        ("hf://someone/damaged", "not a whole safetensors file"),
        ("hf://someone/broken", "the Hub answers 500"),
        ("hf://stripes", "expected hf://OWNER/NAME"),
        ("hf://someone/stripes/x", "expected hf://OWNER/NAME"),
        ("hf://someone/stripes@", "expected hf://OWNER/NAME"),
        ("hf://-some/stripes", "no name of a repository"),
    ],
)
def test_a_repository_that_cannot_be_loaded(address, message, the_hub):
    with pytest.raises(UserError, match=re.escape(message)):
        llc.load(address)
    if address.endswith("vit"):
        assert names_of(the_hub) == {"config.json"}  # what is large is not downloaded first


def test_an_address_needs_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"hf://a/b needs huggingface_hub.*pip install 'llcodes\[hub\]'"):
        llc.load("hf://a/b")


def test_a_folder_loads_without_huggingface_hub(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert llc.load(exported).num_bits == 10
