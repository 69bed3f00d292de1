"""Decoders from outside the package, in training, evaluation and the library; values checked by hand."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

import llc
from tests.conftest import ROOT, SMALL
from tests.waiting import seconds

PLUGIN = '''
"""The nearest class if its code is at most 1 bit away; the class that most train images of a code have."""

import numpy as np
import torch

from llc.codes import pack_bits
from llc.evaluation.decoders import MHD, Decoder, FittedDecoder, fraction, register


@register
class Near(Decoder):
    name, title, short = "near", "within 1 bit", "near"
    of_image_codes = True
    depth = 1
    details = {"rejected": "rejected"}

    def bind(self, network):
        nearest = MHD().bind(network)

        def rank(z, k):
            classes, distances = nearest(z, 1)
            return classes.where(distances <= 1, -1), distances

        return rank

    def metrics(self, labels, classes, scores, num_classes):
        return {"top1": fraction(classes[:, 0] == labels), "rejected": fraction(classes[:, 0] == -1)}


class Learnt:
    def __init__(self, arrays):
        self.arrays = dict(arrays)


@register
class Seen(FittedDecoder):
    name, title, short = "seen", "seen code", "seen"
    of_image_codes = True
    depth = 1

    def fit(self, codes, labels, network):
        seen, places = np.unique(codes, axis=0, return_inverse=True)
        counts = np.zeros((len(seen), len(network.codebook)), np.int64)
        np.add.at(counts, (places.reshape(-1), labels), 1)
        return Learnt({"codes": seen, "classes": counts.argmax(1)})

    def restore(self, arrays, network):
        return Learnt(arrays)

    def bind_fitted(self, network, learnt):
        arrays = learnt.arrays
        table = {bytes(code): int(c) for code, c in zip(arrays["codes"], arrays["classes"])}

        def rank(z, k):
            classes = torch.tensor([[table.get(bytes(code), -1)] for code in pack_bits(z).numpy()])
            return classes, (classes < 0).int()

        return rank

    def metrics(self, labels, classes, scores, num_classes):
        return {"top1": fraction(classes[:, 0] == labels)}
'''

LIBRARY = """
import sys
sys.path.insert(0, sys.argv[2])
import near_plugin
import json, llc
encoder = llc.load(sys.argv[1])
found = encoder.classify(sys.argv[3:], decode="near")
codes = encoder.encode(sys.argv[3:])
try:
    encoder.classify(sys.argv[3:], decode="far")
except ValueError as error:
    message = str(error)
loaded = [name for name in sys.modules if name.split(".")[0] == "fastargs" or name.startswith("llc.training")]
print(json.dumps([found.labels.tolist(), found.scores.tolist(), codes.tolist(), message, loaded]))
"""


@pytest.fixture(scope="module")
def trained(betons, run_llc, tmp_path_factory):
    """(run folder, folder of the plugin, what training printed)."""
    folder = tmp_path_factory.mktemp("seam")
    (folder / "near_plugin.py").write_text(PLUGIN)
    done = run_llc(
        "train_llc.py",
        f"--plugin={folder / 'near_plugin.py'}",
        *SMALL,
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={betons[1]}",
        f"--logging.folder={folder}",
        "--logging.name=run",
        "--codebook.epochs=1",
        "--codebook.lr_peak_epoch=0",
        "--instance.epochs=1",
    )
    return folder / "run", folder, done.stdout


def by_hand(codes, class_codes):
    """(nearest class within 1 bit or -1, distance to the nearest) of packed codes, by Python's integers."""
    own, others = (
        [int.from_bytes(bytes(code), "big") for code in array.tolist()] for array in (codes, class_codes)
    )
    nearest = [min(((a ^ b).bit_count(), c) for c, b in enumerate(others)) for a in own]
    return [c if distance <= 1 else -1 for distance, c in nearest], [distance for distance, _ in nearest]


def test_a_registered_decoder_is_measured_in_training_and_evaluation(trained, run_llc, tmp_path):
    run, folder, printed = trained
    words = ["-m", "llc.evaluate", f"--plugin={folder / 'near_plugin.py'}"]
    words += ["--predictions", tmp_path / "predictions.npz", run]  # RUN comes last, after a flag's value
    text = run_llc(*words).stdout
    arrays = np.load(tmp_path / "predictions.npz")
    classes, _ = by_hand(arrays["codes"], llc.pack_bits(np.load(run / "codebook.npy")))
    assert arrays["top_near"][:, 0].tolist() == classes
    top1, rejected = (arrays["labels"] == classes).mean(), classes.count(-1) / 66
    assert 0 < rejected < 1
    line = next(line for line in text.splitlines() if line.strip().startswith("within 1 bit"))
    assert line.split() == f"within 1 bit top-1 {100 * top1:.2f} % rejected {100 * rejected:.2f} %".split()

    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert last["top1_near_flip"] == pytest.approx(top1) and last["rejected_near_flip"] == pytest.approx(
        rejected
    )
    with open(run / "results.csv") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(rows["instance/top1_near_flip"]["final"]) == pytest.approx(top1, abs=1e-6)
    assert float(rows["instance/rejected_near_flip"]["final"]) == pytest.approx(rejected, abs=1e-6)
    headlines = {metric for metric, row in rows.items() if row["headline"] == "1" and "near" in metric}
    assert headlines == {"instance/top1_near_flip"} and "codebook/top1_near" in rows
    assert f"near {100 * top1:.2f}" in printed
    assert f"instance stage, top1_near_flip: {100 * top1:.2f} %" in printed


def test_a_registered_decoder_learns_from_the_train_set_at_the_end_of_training(trained, betons, call_llc):
    run, folder, printed = trained
    codes = {}
    for split, beton in zip(("train", "val"), betons):
        call_llc("-m", "llc.encode", run, f"--data={beton}", f"--out={folder / split}.npz")
        codes[split] = np.load(folder / f"{split}.npz")
    seen = {}
    for code, label in zip(map(bytes, codes["train"]["codes"]), codes["train"]["labels"].tolist()):
        seen.setdefault(code, []).append(label)
    classes = [
        max(range(6), key=lambda c: (seen[code].count(c), -c)) if code in seen else -1
        for code in map(bytes, codes["val"]["codes"])
    ]
    top1 = (codes["val"]["labels"] == classes).mean()
    assert 1 / 6 < top1 < 1 and len(seen) > 6
    with open(run / "results.csv") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(rows["instance/top1_seen_flip"]["final"]) == pytest.approx(top1, abs=1e-6)
    assert rows["instance/top1_seen_flip"]["headline"] == "1" and "codebook/top1_seen_flip" not in rows
    assert f"instance stage, top1_seen_flip: {100 * top1:.2f} %" in printed
    assert "train images: posterior, seen" in printed and "seen " not in printed.split("encoding")[0]
    with np.load(run / "decoder.npz") as learnt:
        assert set(map(bytes, learnt["seen.codes"])) == set(seen) and "posterior.num_bits" in learnt


def test_the_library_decodes_with_it_and_imports_no_trainer(trained, image_tree):
    run, folder, _ = trained
    files = sorted(map(str, (image_tree / "val").rglob("*.*g")))[::3]
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY, run, folder, *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds(240),
    )
    assert done.returncode == 0, done.stderr
    labels, scores, codes, message, loaded = json.loads(done.stdout)
    classes, distances = by_hand(np.array(codes, np.uint8), llc.pack_bits(np.load(run / "codebook.npy")))
    assert labels == [[c] for c in classes] and scores == [[d] for d in distances]
    assert message == "decode: expected one of class, mhd, ed, posterior, near, seen, got 'far'"
    assert loaded == []
