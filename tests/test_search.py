"""python -m llc.search against a loop over Python integers; flags of the commands on codes; damaged runs."""

import numpy as np
import pytest
import torch
from PIL import Image

import llc
from llc import encode, runs, search
from llc.data.preprocessing import Preprocessing
from llc.errors import UserError
from llc.evaluate import __main__ as evaluate
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from tests.conftest import trained_network
from tests.data.helpers import marked
from tests.original import pictures


def test_search_between_files_of_codes(tmp_path, capsys):
    rng = np.random.default_rng(0)
    database, queries = (np.packbits(rng.integers(0, 2, (n, 11)), axis=1) for n in (60, 25))
    labels = rng.integers(0, 2, 60)
    np.savez(
        tmp_path / "database.npz",
        codes=database,
        num_bits=11,
        labels=labels,
        class_names=np.array(["ant", "bee"]),
    )
    np.savez(
        tmp_path / "queries.npz", codes=queries, num_bits=11, files=np.array([f"{i}.jpg" for i in range(25)])
    )
    search.main(
        [
            str(tmp_path / "database.npz"),
            f"--queries={tmp_path / 'queries.npz'}",
            "--k=4",
            f"--out={tmp_path / 'found.npz'}",
        ]
    )
    said, found = capsys.readouterr().out.splitlines(), np.load(tmp_path / "found.npz")
    ints = [[int.from_bytes(row.tobytes(), "big") for row in codes] for codes in (queries, database)]
    for i, query in enumerate(ints[0]):
        expected = sorted((bin(query ^ code).count("1"), j) for j, code in enumerate(ints[1]))[:4]
        assert list(zip(found["distances"][i].tolist(), found["indices"][i].tolist())) == expected
        if i < 20:
            assert said[i] == f"{i}.jpg: " + ", ".join(
                f"{j} {('ant', 'bee')[labels[j]]} ({d})" for d, j in expected
            )
    assert said[20:] == ["... and 5 more queries"]


def test_lines_say_what_imagenets_classes_are(tmp_path, capsys):
    for name in ("database", "queries"):
        np.savez(
            tmp_path / f"{name}.npz",
            codes=np.zeros((1, 1), np.uint8),
            num_bits=8,
            labels=np.array([1]),
            class_names=np.array(["n01440764", "n01443537"]),
        )
    search.main([str(tmp_path / "database.npz"), f"--queries={tmp_path / 'queries.npz'}"])
    assert capsys.readouterr().out == "0 n01443537 goldfish: 0 n01443537 goldfish (0)\n"


def test_an_image_finds_itself(tmp_path, capsys):
    encoder = llc.Encoder(
        trained_network("resnet18", 100, 3, width=8),
        Preprocessing(32, 1.0, "area", IMAGENET_MEAN, IMAGENET_STD),
    )
    encoder.save(tmp_path / "encoder.safetensors")
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(pictures(6, seed=2, size=40)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    codes = encoder.encode(sorted(folder.iterdir()))
    assert len(torch.unique(codes, dim=0)) == 6
    np.savez(
        tmp_path / "codes.npz",
        codes=codes.numpy(),
        num_bits=100,
        files=np.array([f"{i}.png" for i in range(6)]),
    )
    words = [str(tmp_path / "codes.npz"), f"--model={tmp_path / 'encoder.safetensors'}", "--k=2"]
    search.main([*words, f"--queries={folder / '4.png'}"])
    assert capsys.readouterr().out.startswith("4.png: 4.png (0), ")
    search.main([*words, f"--queries={folder}"])
    said = capsys.readouterr().out
    assert all(f"{i}.png: {i}.png (0), " in said for i in range(6))
    with pytest.raises(UserError, match="--model="):
        search.main([words[0], f"--queries={folder}"])


def test_names_that_cannot_be_printed_lose_no_result(tmp_path, run_llc, monkeypatch):
    codes = np.array([[1], [7], [128]], np.uint8)
    names = np.array(["\u0142.png", "two\nlines.png", "red\x1b[31m.png"])
    np.savez(tmp_path / "codes.npz", codes=codes, num_bits=8, files=names)
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    words = [tmp_path / "codes.npz", f"--queries={tmp_path / 'codes.npz'}", "--k=2"]
    done = run_llc("-m", "llc.search", *words, f"--out={tmp_path / 'found.npz'}")
    assert np.load(tmp_path / "found.npz")["indices"].tolist() == [[0, 1], [1, 0], [2, 0]]
    assert "\\u0142.png: \\u0142.png (0), " in done.stdout
    missing = run_llc("-m", "llc.search", *words[:1], "--queries=\x1b[31m\u0142.npz", check=False)
    assert missing.returncode == 2 and "\\x1b[31m\\u0142.npz: cannot be read" in missing.stderr


def test_results_are_written_before_they_are_printed(tmp_path, monkeypatch):
    np.savez(tmp_path / "codes.npz", codes=np.zeros((2, 1), np.uint8), num_bits=8)

    def full(*_, **__):
        raise OSError("the disk of the log is full")

    monkeypatch.setattr("builtins.print", full)
    words = [str(tmp_path / "codes.npz"), f"--queries={tmp_path / 'codes.npz'}"]
    with pytest.raises(OSError, match="log is full"):
        search.main([*words, f"--out={tmp_path / 'found.npz'}"])
    assert np.load(tmp_path / "found.npz")["distances"].shape == (2, 2)


def test_files_that_hold_no_codes_are_refused(tmp_path):
    good = tmp_path / "good.npz"
    np.savez(good, codes=np.zeros((2, 1), np.uint8), num_bits=7)
    cases = [
        (
            "num.npz",
            lambda path: np.savez(path, codes=np.zeros((2, 1), np.uint8), num_bits=12),
            "expected uint8",
        ),
        ("float.npz", lambda path: np.savez(path, codes=np.zeros((2, 1)), num_bits=7), "codes are float64"),
        ("bare.npz", lambda path: np.savez(path, codes=np.zeros((2, 1), np.uint8)), "it holds codes"),
        (
            "other.npz",
            lambda path: np.savez(path, codes=np.zeros((2, 2), np.uint8), num_bits=9),
            "made by different models",
        ),
        ("object.npz", lambda path: np.savez(path, codes=np.array([{}]), num_bits=7), "not a file of codes"),
        ("text.npz", lambda path: path.write_text("codes"), "not a file of codes"),
        ("array.npz", lambda path: np.save(open(path, "wb"), np.zeros(3)), "not a file of codes"),
        ("empty.npz", lambda path: path.touch(), "empty.npz: an empty file"),
        (
            "pointer.npz",
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
            "a Git LFS pointer",
        ),
        ("locked.npz", lambda path: path.write_bytes(marked(good.read_bytes(), 1)), "encrypted"),
        ("patch.npz", lambda path: path.write_bytes(marked(good.read_bytes(), 32)), "patched data"),
        ("zip.npz", lambda path: path.write_bytes(good.read_bytes()[:80]), "not a file of codes"),
    ]
    for name, write, message in cases:
        write(tmp_path / name)
        with pytest.raises(UserError, match=message):
            search.main([str(good), f"--queries={tmp_path / name}"])
    with pytest.raises(UserError, match="nowhere.npz: cannot be read"):
        search.main([str(tmp_path / "nowhere.npz"), f"--queries={good}"])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--like=3"], "--like: only for an index, and .*codes.npz is a file; python -m llc.index create"),
        (["--queries=codes.npz", "--radius=0"], "--radius: only for an index"),
        (["--queries=codes.npz", "--montage=x.png"], "--montage: only for an index"),
        (["--queries=codes.npz", "--json=-"], "--json: only for an index"),
        (["cat.jpg"], "cat.jpg: queries as words are for an index; give --queries=cat.jpg --model=MODEL"),
        ([], "queries is required"),
    ],
)
def test_flags_of_an_index_are_refused_for_files_of_codes(words, message, tmp_path, monkeypatch):
    """tests/index/test_commands.py searches indexes."""
    monkeypatch.chdir(tmp_path)
    np.savez("codes.npz", codes=np.zeros((2, 1), np.uint8), num_bits=8)
    with pytest.raises(UserError, match=message):
        search.main(["codes.npz", *words])
    with pytest.raises(UserError, match="there is no such index, nor a file of codes"):
        search.main(["x.index", "--like=3"])
    assert [path.name for path in tmp_path.iterdir()] == ["codes.npz"]


# ------------------------------------------------------------------------------------------------ flags


@pytest.mark.parametrize(
    "command, words, message",
    [
        (encode, [], "model is required"),
        (encode, ["m", "--data=d"], "out is required"),
        (encode, ["m", "--data=d", "--out=nowhere/x.npz"], "there is no folder nowhere"),
        (encode, ["m", "--data=d", "--out=."], "this is a folder"),
        (encode, ["m", "--data=d", "--out=/dev/null"], "it exists and is not a file"),
        (encode, ["m", "--data=d", "--out=x", "--num_workers=0"], "num_workers=0: expected 1 or more, or -1"),
        (encode, ["m", "--data=d", "--out=x", "--num_workers=-2"], "at least -1"),
        (encode, ["m", "--data=d", "--out=x", "--batch_size=0"], "at least 1"),
        (encode, ["m", "--data=d", "--out=x", "--batchsize=1"], "did you mean batch_size"),
        (search, ["x.npz"], "queries is required"),
        (search, ["x.npz", "--queries=y.npz", "--k=0"], "at least 1"),
        (search, ["x.npz", "--queries=y.npz", "--out=nowhere/x.npz"], "there is no folder nowhere"),
        (evaluate, [], "MODEL is missing"),
        (evaluate, ["--predictions", "p.npz"], "MODEL is missing"),
        (evaluate, ["."], "not a run folder"),
        (evaluate, ["m", "--original=o", "--data.val_dataset=v"], "not together with MODEL"),
        (evaluate, ["m", "--data.val_dataset=v", "--data.num_workers=0"], "num_workers=0"),
    ],
)
def test_flags_that_are_wrong_are_named_before_any_work(command, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command.main(words)


SHARED = "num_bits= dataset= split= image_column= label_column= header="


@pytest.mark.parametrize(
    "command, keys",
    [
        (encode, f"MODEL data= out= checkpoint= device= batch_size= num_workers= {SHARED}"),
        (search, f"DATABASE queries= model= k= out= checkpoint= device= batch_size= num_workers= {SHARED}"),
        (evaluate, f"MODEL original= codebook= predictions= data.val_dataset= validation.resize= {SHARED}"),
    ],
)
def test_help_lists_every_key(command, keys, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and all(key in said for key in keys.split())
    assert "all keys of" in " ".join(said.split()) or command is not evaluate


def test_evaluate_takes_all_keys_of_a_recipe_with_a_run_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--predictions", "p.npz", str(tmp_path), "--help"])
    assert "--codebook.lr=" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "config.yaml: not a valid YAML file"),
        ("[1]", "expected sections with keys, found list"),
        ("hashing: {epochs: 3}", "hashing: not a section of a recipe; .*--plugin=FILE.py"),
        ("codes: 3", "codes is 3; expected names of keys"),
        ("codes: {1: 2}", "codes is {1: 2}; expected names of keys"),
        ("codes: {num_bit: 3}", "codes.num_bit is not a key; did you mean num_bits"),
        (
            "data: {train_dataset: a, val_dataset: b}\ntraining: {stages: hashing}",
            "config.yaml: training.stages",
        ),
    ],
)
def test_a_damaged_configuration_of_a_run_is_named(content, message, tmp_path):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        runs.read_config(tmp_path)
    assert str(tmp_path) in str(caught.value) and "--config" not in str(caught.value)
