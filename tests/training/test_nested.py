"""codes.nested: the first bits of a run's codes as codes, from training to the commands that read a model."""

import csv

import numpy as np
import pytest

import llc
import train_llc
from llc import encode
from llc.codebook import health
from llc.errors import UserError
from llc.evaluate import __main__ as evaluate
from llc.export import __main__ as export
from tests.tools.chaos import make_betons
from tests.training.test_survival import SHORT


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run folder, train beton, val beton) of codes of 7 bits, of which the first 3 are codes too."""
    folder = tmp_path_factory.mktemp("nested")
    train, val = make_betons(folder)
    train_llc.main(
        [
            *SHORT,
            f"--data.train_dataset={train}",
            f"--data.val_dataset={val}",
            f"--logging.folder={folder}",
            "--logging.name=run",
            "--codes.nested=3",
            "--codes.min_distance=1",
        ]
    )
    return folder / "run", train, val


def figures(run):
    with open(run / "results.csv") as file:
        return {row["metric"]: float(row["final"]) for row in csv.DictReader(file)}


def test_a_run_ends_with_the_figures_of_its_first_bits(trained, tmp_path, capsys):
    run, train, _ = trained
    found = figures(run)
    capsys.readouterr()
    words = [str(run), "--num_bits=3", f"--decoder={tmp_path / 'three.npz'}"]
    evaluate.main([*words, f"--fit_decoder={train}"])
    evaluate.main(words)
    output = capsys.readouterr().out
    assert output.count("20 images, 3 bits, left-right flips averaged") == 2
    for title, name in (("class codes", "class"), ("MHD", "mhd"), ("ED", "ed"), ("posterior", "posterior")):
        line = f"  {title:12s} top-1 {100 * found[f'instance/top1_{name}_flip@3']:6.2f} %"
        if name != "class":  # which evaluate takes from the codebook stage
            assert output.count(line) == 2, (line, output)
    assert "instance/top1_mhd_flip@3" in found and "codebook/top1_mhd_flip@3" not in found
    whole = health(llc.load(run).codebook)
    assert health(llc.load(run).codebook[:, :3]).min_distance == 1 and whole.min_distance >= 1


def test_codes_of_the_first_bits_are_the_first_bits_of_codes(trained, tmp_path):
    run, _, val = trained
    outs = {}
    for num_bits in (3, 7):
        out = tmp_path / f"{num_bits}.npz"
        encode.main([str(run), f"--data={val}", f"--out={out}", f"--num_bits={num_bits}"])
        outs[num_bits] = np.load(out)
        assert outs[num_bits]["num_bits"] == num_bits
    first = llc.unpack_bits(outs[7]["codes"], 7)[:, :3]
    assert np.array_equal(llc.unpack_bits(outs[3]["codes"], 3), first) and first.any() and not first.all()


def test_a_saved_encoder_of_the_first_bits(trained, tmp_path):
    run, _, val = trained
    path = tmp_path / "three.safetensors"
    export.main([str(run), "--to=encoder", "--num_bits=3", f"--out={path}"])
    encoder = llc.load(path)
    assert (encoder.num_bits, encoder.codebook.shape, encoder.learnt) == (3, (5, 3), {})
    assert llc.load(run).learnt and not llc.load(run, num_bits=3).learnt
    # what decoders learnt of a saved encoder's whole codes is left out, too
    llc.load(run).save(tmp_path / "whole.safetensors")
    assert llc.load(tmp_path / "whole.safetensors").learnt
    assert not llc.load(tmp_path / "whole.safetensors", num_bits=3).learnt


def test_what_makes_no_sense_is_named(trained, tmp_path):
    run, train, val = trained
    with pytest.raises(UserError, match="num_bits = 8: the codes have 7 bits; give 1 to 7"):
        llc.load(run, num_bits=8)
    before = (run / "decoder.npz").read_bytes()
    with pytest.raises(UserError, match="name a file for decoders of so many bits, with --decoder=FILE.npz"):
        evaluate.main([str(run), "--num_bits=3", f"--fit_decoder={train}"])
    with pytest.raises(UserError, match="fitted to the codes of another network"):
        evaluate.main([str(run), "--num_bits=3", f"--decoder={run / 'decoder.npz'}"])
    assert (run / "decoder.npz").read_bytes() == before
    with pytest.raises(UserError, match="codes.nested = 9: codes have 7 bits"):
        train_llc.main(
            [*SHORT, f"--data.train_dataset={train}", f"--data.val_dataset={val}", "--codes.nested=9"]
        )
