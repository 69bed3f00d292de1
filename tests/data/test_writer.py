"""Real image files through write_ffcv.py and back through stock FFCV."""
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from PIL import Image

from llc.data.images import load_rgb
from llc.data.loaders import epoch_order
from llc.data.manifest import load_manifest, verify
from llc.errors import UserError
from tests.conftest import ROOT


def samples(beton):
    """(pixels or JPEG bytes as a digest, label) of each sample, read by hand from the file's tables."""
    reader, data = Reader(str(beton)), np.fromfile(beton, np.uint8)
    sizes = {int(row["ptr"]): int(row["size"]) for row in reader.alloc_table}
    for row in reader.metadata:
        start = int(row["f0"]["data_ptr"])
        yield hashlib.md5(data[start:start + sizes[start]].tobytes()).hexdigest(), int(row["f1"])


def test_stock_ffcv_reads_back_the_pixels_in_order(tmp_path, run_llc):
    rng, pictures = np.random.default_rng(0), {}
    for label, name in enumerate(("Zebra", "ant", "bee")):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tree" / name / f"{i}.png")
            pictures[5 * label + i] = pixels
    beton = tmp_path / "out.beton"
    run_llc("write_ffcv.py", f"--cfg.data_dir={tmp_path / 'tree'}", f"--cfg.write_path={beton}", "--cfg.write_mode=raw",
            "--cfg.chunk_size=2")
    manifest = verify(beton)
    assert manifest.class_names == ("Zebra", "ant", "bee") and manifest.class_counts == (5, 5, 5)
    loader = Loader(str(beton), batch_size=4, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False,
                    pipelines={"image": [CenterCropRGBImageDecoder((20, 20), 1.0)], "label": [IntDecoder()]})
    position = 0
    for images, labels in loader:
        for image, label in zip(images, labels.reshape(-1)):
            assert (image == pictures[position]).all() and label == position // 5
            position += 1
    assert position == 15


def test_samples_do_not_depend_on_the_number_of_workers(image_tree, tmp_path, run_llc):
    found = []
    for workers in (1, 3):
        beton = tmp_path / f"{workers}.beton"
        run_llc("write_ffcv.py", f"--cfg.data_dir={image_tree}", f"--cfg.write_path={beton}", f"--cfg.num_workers={workers}",
                "--cfg.chunk_size=5", "--cfg.max_resolution=32")
        found.append(list(samples(beton)))
        metadata = Reader(str(beton)).metadata["f0"]
        assert max(metadata["width"].max(), metadata["height"].max()) == 32
        assert 0 < (metadata["mode"] == 0).sum() < 240  # a proportion of JPEGs
    assert found[0] == found[1] and len(found[0]) == 240 and len(set(found[0])) == 240


def test_held_out_images_and_the_rest_are_a_partition(image_tree, tmp_path, run_llc):
    parts = []
    for split in ("train", "val"):
        beton = tmp_path / f"{split}.beton"
        run_llc("write_ffcv.py", f"--cfg.data_dir={image_tree / 'val'}", f"--cfg.write_path={beton}", f"--cfg.split={split}",
                "--cfg.val_fraction=0.2", "--cfg.write_mode=raw")
        parts.append(set(samples(beton)))
    assert [len(p) for p in parts] == [54, 12] and not parts[0] & parts[1]


KINDS = {  # name -> (PIL image, expected middle pixel)
    "grey.png": (Image.new("L", (9, 9), 90), (90, 90, 90)),
    "one_bit.png": (Image.new("1", (9, 9), 1), (255, 255, 255)),
    "palette.gif": (Image.new("RGB", (9, 9), (255, 0, 0)).convert("P"), (255, 0, 0)),
    "alpha.png": (Image.new("RGBA", (9, 9), (0, 0, 0, 0)), (255, 255, 255)),
    "grey_alpha.png": (Image.new("LA", (9, 9), (10, 255)), (10, 10, 10)),
    "cmyk.tiff": (Image.new("CMYK", (9, 9), (0, 255, 255, 0)), (255, 0, 0)),
    "deep.png": (Image.fromarray(np.full((9, 9), 0x8080, np.uint16)), (128, 128, 128)),
}


@pytest.mark.parametrize("name", KINDS)
def test_any_image_becomes_8_bit_rgb(name, tmp_path):
    image, expected = KINDS[name]
    image.save(tmp_path / name)
    pixels = load_rgb(tmp_path / name)
    assert pixels.dtype == np.uint8 and pixels.shape == (9, 9, 3) and tuple(pixels[4, 4]) == expected


def test_16_bit_rgb_is_scaled(tmp_path):
    import cv2
    cv2.imwrite(str(tmp_path / "deep.tiff"), np.full((5, 6, 3), (0x1010, 0x8080, 0xF0F0), np.uint16))
    assert load_rgb(tmp_path / "deep.tiff")[2, 2].tolist() == [0xF0, 0x80, 0x10]


def test_exif_rotation_is_applied_and_animations_give_their_first_frame(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((10, 20, 3), 99, np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    assert load_rgb(tmp_path / "turned.jpg").shape == (20, 10, 3)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert load_rgb(tmp_path / "moving.gif")[0, 0].tolist() == [255, 0, 0]


def broken_tree(folder):
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (30, 30), "blue").save(folder / name / "good.png")
    (folder / "a" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    return folder


def test_unreadable_images_are_listed_and_nothing_is_written(tmp_path, run_llc):
    tree, beton = broken_tree(tmp_path / "tree"), tmp_path / "out.beton"
    beton.write_bytes(b"what was there before")
    done = run_llc("write_ffcv.py", f"--cfg.data_dir={tree}", f"--cfg.write_path={beton}", check=False)
    assert done.returncode == 2 and "torn.jpg" in done.stderr and "--cfg.on_error=skip" in done.stderr
    assert beton.read_bytes() == b"what was there before" and sorted(p.name for p in tmp_path.iterdir()) == ["out.beton", "tree"]
    run_llc("write_ffcv.py", f"--cfg.data_dir={tree}", f"--cfg.write_path={beton}", "--cfg.on_error=skip")
    manifest = verify(beton)
    assert manifest.num_samples == 2 and "torn.jpg" in manifest.skipped[0].name


@pytest.mark.parametrize("prepare, message", [
    (lambda folder: None, "does not exist"),
    (lambda folder: folder.mkdir(), "holds no folder"),
    (lambda folder: (folder / "empty").mkdir(parents=True), "holds no images"),
    (lambda folder: (broken_tree(folder), (folder / "empty").mkdir()), "empty"),
    (lambda folder: folder.write_text("a file"), "is a file"),
])
def test_a_tree_without_images_is_a_clear_error(prepare, message, tmp_path, run_llc):
    prepare(tmp_path / "tree")
    done = run_llc("write_ffcv.py", f"--cfg.data_dir={tmp_path / 'tree'}", f"--cfg.write_path={tmp_path / 'o.beton'}", check=False)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_killed_worker_ends_the_conversion_and_leaves_nothing(tmp_path):
    folder = tmp_path / "tree" / "a"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "0.png")
    for i in range(1, 400):
        os.link(folder / "0.png", folder / f"{i}.png")
    writer = subprocess.Popen([sys.executable, "write_ffcv.py", f"--cfg.data_dir={tmp_path / 'tree'}", "--cfg.num_workers=2",
                               f"--cfg.write_path={tmp_path / 'o.beton'}"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    children = []
    while len(children) < 2 and writer.poll() is None:
        time.sleep(0.05)
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(writer.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, errors = writer.communicate(timeout=60)
    assert writer.returncode == 2 and "was killed by SIGKILL" in errors
    assert [p.name for p in tmp_path.iterdir()] == ["tree"]


def test_a_damaged_beton_is_recognised(betons, tmp_path):
    content = betons[1].read_bytes()
    manifest = json.loads((betons[1].parent / f"{betons[1].name}.json").read_text())
    beton, beside = tmp_path / "v.beton", tmp_path / "v.beton.json"
    beside.write_text(json.dumps(manifest))
    for damage in (content[:-10], content[:len(content) // 2], b"", content[:3000] + b"\0" + content[3001:]):
        beton.write_bytes(damage)
        with pytest.raises(UserError, match="v.beton"):
            verify(beton)
    beton.write_bytes(content)
    verify(beton)
    for text in ("", "[]", "{}", json.dumps({**manifest, "class_names": 3}), json.dumps({**manifest, "num_samples": 10 ** 30})):
        beside.write_text(text)
        with pytest.raises(UserError, match="not a manifest"):
            load_manifest(beton)


def test_each_epochs_order_is_shared_out_without_repeats():
    whole = epoch_order(103, 20, seed=5, epoch=2)
    assert len(whole) == 100 and len(set(whole.tolist())) == 100
    ranks = [epoch_order(103, 5, 5, 2, rank, 4).reshape(-1, 5) for rank in range(4)]
    assert (np.concatenate(ranks, axis=1).reshape(-1) == whole).all()  # the same global batches for any number of processes
    assert (whole != epoch_order(103, 20, 5, 3)).any() and (whole != epoch_order(103, 20, 6, 2)).any()
