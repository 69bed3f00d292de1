"""A source of one's own: a file outside the package, which the command line uses like any other source."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from llc.data.manifest import verify
from llc.data.sources import OPENERS, Source, SourceError, open_source, register, with_class_names
from tests.data.betons import stored_samples
from tests.data.helpers import REPOSITORY
from tests.waiting import seconds

PLUGIN = '''
    """Squares of one colour, listed in a text file of lines `class red green blue`."""

    import os
    from dataclasses import dataclass

    import numpy as np
    from PIL import Image

    from llc.data.sources import Source, SourceError, register


    @register("mine", "my-colours")
    def open_mine(data_dir, split):
        path = os.path.join(data_dir, f"{split}.txt")
        if not os.path.exists(path):
            raise SourceError(f"{path} does not exist")
        rows = [line.split() for line in open(path)]
        names = tuple(sorted({name for name, *_ in rows}))
        labels = np.array([names.index(name) for name, *_ in rows])
        return Colours(names, labels, tuple(tuple(map(int, colour)) for _, *colour in rows))


    @dataclass(frozen=True)
    class Colours(Source):
        colours: tuple

        def image(self, i):
            return Image.new("RGB", (5, 4), self.colours[i])

        def name(self, i):
            return f"square {i}"
'''
COLOURS = [("sea", 10, 20, 200), ("lawn", 0, 160, 30), ("sea", 0, 40, 255), ("brick", 190, 60, 40)] * 9


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "my_source.py"
    path.write_text(textwrap.dedent(PLUGIN))
    (tmp_path / "train.txt").write_text("\n".join(" ".join(map(str, row)) for row in COLOURS))
    return path


def run(*words):
    return subprocess.run(
        [sys.executable, REPOSITORY / "write_ffcv.py", *words],
        capture_output=True,
        text=True,
        timeout=seconds(120),
    )


@pytest.mark.parametrize("dataset", ["mine", "My-Colours"])
def test_a_plugin_is_a_source_like_any_other(dataset, plugin, tmp_path):
    beton = tmp_path / "out.beton"
    done = run(
        f"--plugin={plugin}",
        f"--cfg.dataset={dataset}",
        f"--cfg.data_dir={tmp_path}",
        f"--cfg.write_path={beton}",
        "--cfg.num_workers=2",
        "--cfg.chunk_size=3",
        "--cfg.write_mode=raw",
    )
    assert done.returncode == 0, done.stderr
    manifest = verify(beton)
    assert manifest.class_names == ("brick", "lawn", "sea") and manifest.class_counts == (9, 9, 18)
    samples = stored_samples(beton)
    assert len(samples) == 36
    for sample, (name, *colour) in zip(samples, COLOURS):
        assert manifest.class_names[sample.label] == name
        assert np.array_equal(sample.pixels(), np.broadcast_to(np.array(colour, np.uint8), (4, 5, 3)))


def test_errors_of_a_plugins_source_are_messages(plugin, tmp_path):
    words = [f"--plugin={plugin}", f"--cfg.data_dir={tmp_path}", f"--cfg.write_path={tmp_path / 'x.beton'}"]
    done = run(*words, "--cfg.dataset=mine", "--cfg.split=val")
    assert done.returncode == 2 and done.stderr == f"error: {tmp_path / 'val.txt'} does not exist\n"
    done = run(*words, "--cfg.dataset=mein")
    assert done.returncode == 2 and "dataset=mein is not known; did you mean mine" in done.stderr
    assert "It may be folder (one folder of images per class), " in done.stderr and ", mine, " in done.stderr


@pytest.fixture
def registry():
    """Forgets what the test registers."""
    before = dict(OPENERS)
    yield
    OPENERS.clear()
    OPENERS.update(before)


class Numbers(Source):
    """Three classes; it asks to be told which classes there are."""

    def check_classes(self):
        raise SourceError("which classes?")


class Sorted(Numbers):
    sorted_by_label = True


def test_a_source_says_how_its_classes_are_treated(registry):
    labels = np.array([0, 1, 1, 2])
    register("Once")(lambda data_dir, split: Numbers(tuple("abc"), labels))
    with pytest.raises(SourceError, match="which classes"):
        open_source("once", "")
    source = open_source("ONCE", "", class_names=("c", "b", "a"))
    assert source.labels.tolist() == [2, 1, 1, 0] and source.indices.tolist() == [0, 1, 2, 3]
    source = with_class_names(Sorted(tuple("abc"), labels), ("c", "b", "a"))
    assert source.labels.tolist() == [0, 1, 1, 2] and source.indices.tolist() == [3, 1, 2, 0]


def test_a_name_is_registered_once(registry):
    register("twice")(lambda data_dir, split: None)
    for name in ("Twice", "folder", "FASHION-MNIST"):
        with pytest.raises(ValueError, match=f"dataset source '{name}' is registered already"):
            register("other", name)(lambda data_dir, split: None)
    assert "other" not in OPENERS
