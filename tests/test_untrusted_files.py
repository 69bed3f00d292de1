"""Files from strangers: changed at random (tests/tools/fuzz.py), or made to run code or fill the memory."""

import os
import pickle
import random
import time
import zipfile

import numpy as np
import pytest
import torch

from llc import config as edge
from llc.codebook import load_codebook
from llc.errors import UserError
from llc.recipe import sections
from llc.torch_files import read_torch_file
from tests.tools.fuzz import fuzz, readers

READERS = (
    "beton with its manifest",
    "beton alone",
    "manifest",
    "checkpoint",
    "checkpoint with right checksums",
    "checkpoint of the old format",
    "codebook",
    "configuration",
)


@pytest.fixture(scope="module")
def all_readers(tmp_path_factory):
    found = readers(tmp_path_factory.mktemp("fuzz"))
    assert tuple(found) == READERS
    return found


@pytest.mark.filterwarnings("ignore:.*has no manifest")
@pytest.mark.parametrize("name", READERS)
def test_changed_files_are_read_or_refused_with_a_message(name, all_readers, tmp_path):
    refused, problems = fuzz(all_readers[name], 250, int(time.time()), tmp_path)
    assert problems == []
    assert 25 < refused < 250  # neither were all of them harmless, nor all refused at the first look


class Runs:
    """Pickled, it calls os.mkdir when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused(zipped, tmp_path):
    torch.save({"network": Runs(tmp_path / "ran")}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="x.pth: not a checkpoint of plain tensors") as error:
        read_torch_file(tmp_path / "x.pth")
    assert (
        not (tmp_path / "ran").exists()
        and "mkdir" in str(error.value)
        and "weights_only" not in str(error.value)
    )
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


def test_a_codebook_that_would_run_code_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([Runs(tmp_path / "ran")], dtype=object), allow_pickle=True)
    (tmp_path / "y.npy").write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    for name in ("x.npy", "y.npy"):
        with pytest.raises(UserError, match=name):
            load_codebook(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "x: !!python/object/apply:os.mkdir [{ran}]",
        "a: &a [1, 2]\nb: &b [*a, *a]",
        "codes: &a {{num_bits: 3}}\ncodebook: *a",
        "a: " + "[" * 10000,
        "codes: {{num_bits: " + "9" * 5000 + "}}",
        "codes: {{num_bits: .inf}}",
        "codes: {{num_bits: 2020-13-45}}",
        "codes: {{num_bits: {{a: 3}}}}",
        "codes: {{num_bits: [3]}}",
        "a: !!int ''",
        "x" * 70000,
        "- 1",
        "\x00",
    ],
)
def test_a_configuration_crafted_to_run_code_or_to_be_huge_is_refused(text, tmp_path):
    (tmp_path / "x.yaml").write_text(text.format(ran=tmp_path / "ran"))
    with pytest.raises(UserError, match="x.yaml"):
        edge.read(
            sections(),
            ["--config", str(tmp_path / "x.yaml"), "--data.train_dataset=a", "--data.val_dataset=b"],
            description="",
        )
    assert not (tmp_path / "ran").exists()


def test_a_codebook_that_claims_more_than_its_file_holds_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((6, 9), np.float32))
    content = (tmp_path / "x.npy").read_bytes()
    for shape in (
        b"(1000000000000, 9)",
        b"(7, 9)",
        b"(-6, 9)",
        b"(99999999999999999999, 99999999999999999999)",
    ):
        # in the place of the padding, so that the header keeps its length
        (tmp_path / "x.npy").write_bytes(
            content.replace(b"(6, 9), }" + b" " * (len(shape) - 6), shape + b", }")
        )
        with pytest.raises(UserError, match="x.npy"):
            load_codebook(tmp_path / "x.npy")


def test_a_checkpoint_that_claims_more_than_its_file_holds_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    claims = records["x/data.pkl"].replace(b"M\xe8\x03", b"\x8a\x06" + (10**12).to_bytes(6, "little"))
    assert claims != records["x/data.pkl"]
    for compression, changed in (
        (zipfile.ZIP_STORED, {"x/data.pkl": claims}),
        (zipfile.ZIP_DEFLATED, {"x/data/0": bytes(1 << 20)}),
    ):
        with zipfile.ZipFile(tmp_path / "x.pth", "w", compression) as archive:
            for name, content in (records | changed).items():
                archive.writestr(name, content)
        with pytest.raises(UserError, match="x.pth"):
            read_torch_file(tmp_path / "x.pth")


def test_every_single_flipped_byte_of_a_checkpoint_is_recognised_or_harmless(tmp_path):
    rng = random.Random(0)
    torch.save({"a": torch.arange(20.0)}, tmp_path / "x.pth")
    content, refused = (tmp_path / "x.pth").read_bytes(), 0
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= (
            1 << rng.randrange(8) if at < len(content) - 1000 else 0xFF
        )  # at the end stands the directory, where any bit may matter
        (tmp_path / "x.pth").write_bytes(flipped)
        try:
            state = read_torch_file(tmp_path / "x.pth")
        except UserError:
            refused += 1
        else:
            assert torch.equal(state["a"], torch.arange(20.0)), at
    assert refused > len(content) / 3  # the rest is padding, and fields that nothing reads
