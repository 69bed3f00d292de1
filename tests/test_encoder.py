"""llc as a library: the trainer's codes, every kind of image, decoders against loops, one safe file."""

import dataclasses
import inspect
import json
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import safe_open, save_file
from torchvision import transforms

import llc
from llc import encode
from llc.codes import pack_bits, unpack_bits
from llc.data.batches import BetonImages
from llc.data.loaders import ValLoader
from llc.data.preprocessing import Preprocessing
from llc.data.shards import open_shards
from llc.distributed import Processes
from llc.errors import UserError
from llc.evaluate import __main__ as evaluate
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from tests.conftest import trained_network
from tests.original import pictures

NAMES = ("ant", "bee", "cow", "dog", "eel", "fox", "gnu")


def small_encoder(**options):
    network = trained_network("resnet18", 11, 7, width=8, logit_scale=0.5)
    return llc.Encoder(
        network, Preprocessing(32, 0.875, "area", IMAGENET_MEAN, IMAGENET_STD), NAMES, **options
    )


@pytest.fixture(scope="module")
def evaluated(finished_run, tmp_path_factory):
    """What the evaluation of the finished run wrote for its val beton."""
    path = tmp_path_factory.mktemp("evaluated") / "predictions.npz"
    evaluate.main([str(finished_run), f"--predictions={path}"])
    return dict(np.load(path))


# ---------------------------------------------------------------------------------------- the trainer's codes


def test_the_library_gives_the_codes_of_the_trainers_evaluation(
    finished_run, betons, evaluated, run_llc, tmp_path
):
    """The val beton through the command, by an encoder saved in one file."""
    llc.load(finished_run).save(tmp_path / "encoder.safetensors")
    said = run_llc(
        "-m",
        "llc.encode",
        tmp_path / "encoder.safetensors",
        f"--data={betons[1]}",
        f"--out={tmp_path / 'codes.npz'}",
        "--batch_size=16",
    ).stdout
    assert "66 codes of 10 bits, 2 bytes each" in said
    found = np.load(tmp_path / "codes.npz")
    assert set(found) == {"codes", "num_bits", "labels", "class_names", "network"}
    assert found["num_bits"] == 10 and len(str(found["network"])) == 64
    assert (found["codes"] == evaluated["codes"]).all() and (found["labels"] == evaluated["labels"]).all()
    assert found["class_names"].tolist() == [f"class_{i}" for i in range(6)]
    assert len(np.unique(evaluated["codes"], axis=0)) > 4


def test_image_files_have_the_codes_that_the_evaluation_gave_their_pixels(
    finished_run, image_tree, betons, evaluated, tmp_path
):
    """Decoding and resizing by the library against the trainer's, for PNG files that the beton keeps."""
    encoder = llc.load(finished_run)
    images = BetonImages.of(open_shards(betons[1]))
    files = sorted((image_tree / "val").rglob("*.*g"), key=lambda path: path.relative_to(image_tree))
    same = [
        i
        for i, path in enumerate(files)
        if path.suffix == ".png" and isinstance(images.image(i), Image.Image)
    ]
    assert len(files) == len(images) == 66 and len(same) > 15
    codes = encoder.encode(files, batch_size=16).numpy()
    assert (codes[same] == evaluated["codes"][same]).all()
    encode.main([str(finished_run), f"--data={image_tree / 'val'}", f"--out={tmp_path / 'folder.npz'}"])
    found = np.load(tmp_path / "folder.npz")
    assert (found["codes"] == codes).all() and (found["labels"] == evaluated["labels"]).all()
    assert found["files"].tolist() == [str(path.relative_to(image_tree / "val")) for path in files]


def test_a_run_says_its_classes_and_a_folder_is_labelled_by_them(finished_run, image_tree, tmp_path, capsys):
    encoder = llc.load(finished_run)
    assert encoder.class_names == tuple(f"class_{i}" for i in range(6)) and encoder.num_bits == 10
    assert json.loads((finished_run / "class_names.json").read_text()) == list(encoder.class_names)
    assert encoder.recipe["codes"]["num_bits"] == 10 and encoder.flip and encoder.stage == "instance"
    files = sorted((image_tree / "val" / "class_4").iterdir())
    found = encoder.classify([*map(str, files)], k=3)
    right = sum(names[0] == "class_4" for names in found.names)
    assert right > len(files) / 2 and found.labels.shape == (11, 3)
    # two of the classes alone keep their labels of training
    (tmp_path / "some").mkdir()
    for label in (4, 2):
        (tmp_path / "some" / f"class_{label}").symlink_to(image_tree / "val" / f"class_{label}")
    evaluate.main(
        [str(finished_run), f"--data.val_dataset={tmp_path / 'some'}", f"--predictions={tmp_path / 'p.npz'}"]
    )
    predictions = np.load(tmp_path / "p.npz")
    assert (
        predictions["labels"].tolist() == [2] * 11 + [4] * 11
        and ": 22 images, 10 bits" in capsys.readouterr().out
    )
    assert (predictions["codes"][11:] == encoder.encode(files).numpy()).all()
    (tmp_path / "some" / "zebra").symlink_to(image_tree / "val" / "class_0")
    with pytest.raises(UserError, match="zebra"):
        evaluate.main([str(finished_run), f"--data.val_dataset={tmp_path / 'some'}"])


@pytest.mark.parametrize("resize", ["area", "bilinear"])
def test_preprocessing_equals_the_validation_loader_and_torchvision(resize, betons):
    """area: FFCV's loader on a beton, for its raw images; bilinear: torchvision's Resize and CenterCrop."""
    rule = Preprocessing(24, 0.8, resize, IMAGENET_MEAN, IMAGENET_STD)
    rng = np.random.default_rng(0)
    if resize == "area":
        loader = ValLoader(
            open_shards(betons[1]),
            batch_size=66,
            num_workers=1,
            processes=Processes(),
            resolution=24,
            crop_ratio=0.8,
        )
        expected = next(iter(loader))[0].permute(0, 2, 3, 1).numpy()
        images = BetonImages.of(open_shards(betons[1]))
        raw = [i for i in range(66) if not isinstance(images.image(i), bytes)]
        assert 20 < len(raw) < 46
        for i in raw:
            assert (rule(np.asarray(images.image(i))) == expected[i]).all()
        return
    reference = transforms.Compose([transforms.Resize(30), transforms.CenterCrop(24)])
    for _ in range(60):
        height, width = rng.integers(2, 90, 2)
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        assert (rule(pixels) == np.asarray(reference(Image.fromarray(pixels)))).all(), (height, width)


def test_a_long_line_of_pixels_is_resized_without_the_whole_of_it():
    rule = Preprocessing(24, 0.8, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3000, 3), np.uint8)
    reference = transforms.Compose([transforms.Resize(30), transforms.CenterCrop(24)])(
        Image.fromarray(pixels)
    )
    difference = rule(pixels).astype(int) - np.asarray(reference)
    assert abs(difference).max() <= 1  # Pillow rounds its box to float32


# ---------------------------------------------------------------------------------------- every kind of image


def test_every_way_to_give_images_gives_the_same_codes(tmp_path):
    encoder = small_encoder(flip=True)
    images = torch.cat([pictures(4, seed=3, size=40), pictures(3, seed=4, size=40)])[:, :, :, 4:]
    assert images.shape == (7, 3, 40, 36)
    pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for image, path in zip(pil, paths):
        image.save(path)
    codes = encoder.encode(images)
    assert codes.dtype == torch.uint8 and codes.shape == (7, 2) and len(torch.unique(codes, dim=0)) > 3
    as_floats = torch.stack([transforms.functional.to_tensor(image) for image in pil])
    mixed = [images[0], pil[1], paths[2], str(paths[3]), as_floats[4], pil[5].convert("RGBA"), images[6]]
    for given in (as_floats, as_floats.double(), pil, paths, [*map(str, paths)], mixed, tuple(pil)):
        assert torch.equal(encoder.encode(given, batch_size=3), codes)
    assert torch.equal(encoder.encode(pil[2]), codes[2:3]) and torch.equal(
        encoder.encode(images[2]), codes[2:3]
    )
    assert torch.equal(encoder.encode(paths[2]), codes[2:3])
    ready = encoder.preprocess(pil)
    assert ready.shape == (7, 3, 32, 32) and ready.dtype == torch.uint8
    assert torch.equal(pack_bits(encoder(ready)), codes)
    assert encoder.encode([]).shape == (0, 2) and encoder.encode(images[:0]).shape == (0, 2)
    assert not encoder.encode(images).requires_grad


@torch.no_grad()
def test_flip_averages_over_the_mirror_image():
    plain, both = small_encoder(), small_encoder(flip=True)
    images = plain.preprocess(pictures(5, seed=3, size=40))
    z, mirrored = plain(images), plain(images.flip(3))
    assert torch.equal(both(images), (z + mirrored) / 2)
    assert not torch.allclose(z, mirrored, atol=1e-2)


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"\[n, 3, H, W\], got torch.uint8 \[2, 1, 8, 8\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "got torch.int64"),
        (torch.full((1, 3, 8, 8), 2.0), "within 0..1, found 2 to 2"),
        (torch.full((1, 3, 8, 8), float("nan")), "within 0..1"),
        (torch.zeros(1, 3, 0, 8), r"\[1, 3, 0, 8\]"),
        ([np.zeros((8, 8, 3))], r"images\[0\]: expected a tensor, a PIL image or a path, got a ndarray"),
        (3, "got a int"),
        (["nowhere.jpg"], "nowhere.jpg: .*No such file"),
    ],
)
def test_what_is_no_image_is_named(images, message):
    with pytest.raises(UserError, match=message):
        small_encoder().encode(images)


def test_a_folder_of_images_alone_and_an_unreadable_one_among_them(
    finished_run, image_tree, call_llc, tmp_path
):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted((image_tree / "val" / "class_1").iterdir())):
        (flat / f"{i:02d}{path.suffix}").symlink_to(path)
    encode.main([str(finished_run), f"--data={flat}", f"--out={tmp_path / 'codes.npz'}"])
    found = np.load(tmp_path / "codes.npz")
    assert (
        found["labels"].tolist() == [-1] * 11
        and found["class_names"].shape == (0,)
        and found["files"][3] == "03.jpg"
    )
    (flat / "07.png").unlink()
    (flat / "07.png").write_bytes(b"\x89PNG no more")
    done = call_llc(
        "-m", "llc.encode", finished_run, f"--data={flat}", f"--out={tmp_path / 'other.npz'}", check=False
    )
    assert done.returncode == 2 and "07.png" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "other.npz").exists()


# ------------------------------------------------------------------------------------------------ classes


def test_classify_equals_a_loop_over_classes():
    encoder = small_encoder()
    encoder.network.codebook.data[5] = encoder.network.codebook.data[1]  # two classes of one code
    images = pictures(40, seed=11, size=36)
    z = encoder.project(images)
    encoder.network.codebook.data[3] = z[8]  # a class whose code an image has
    bits = unpack_bits(encoder.encode(images), 11).tolist()
    class_bits = (encoder.codebook > 0).int().tolist()
    found = {decode: encoder.classify(images, decode, k=4) for decode in ("mhd", "ed", "class")}
    exact = 0
    for i, code in enumerate(bits):
        distances = [sum(a != b for a, b in zip(code, other)) for other in class_bits]
        nearest = sorted(range(7), key=lambda c: (distances[c], c))
        assert found["mhd"].labels[i].tolist() == nearest[:4]
        assert found["mhd"].scores[i].tolist() == [distances[c] for c in nearest[:4]]
        equal = nearest[0] if distances[nearest[0]] == 0 else -1
        exact += equal >= 0
        assert found["ed"].labels[i].tolist() == [equal]
        assert found["ed"].names[i] == [NAMES[equal] if equal >= 0 else None]
        logits = [
            0.5 * sum(value * (1 if bit else -1) for value, bit in zip(z[i].tolist(), other))
            for other in class_bits
        ]
        assert torch.allclose(
            found["class"].scores[i], torch.tensor(sorted(logits, reverse=True)[:4]), atol=1e-4
        )  # sums of float32
        assert [logits[c] for c in found["class"].labels[i].tolist()] == pytest.approx(
            sorted(logits, reverse=True)[:4], abs=1e-4
        )
        assert found["class"].names[i] == [NAMES[c] for c in found["class"].labels[i].tolist()]
    assert 0 < exact < 40
    assert encoder.classify(images, k=50).labels.shape == (40, 7)


# ------------------------------------------------------------------------ only images and weights count


def outcome(encoder, images):
    """What the library says of some images."""
    found = encoder.classify(images, "class", k=7, batch_size=3)
    return encoder.project(images, batch_size=3), encoder.encode(images), found.labels, found.scores


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other))


def test_modes_of_modules_do_not_count_and_stay():
    encoder, images = small_encoder(), pictures(9, seed=5, size=40)
    expected = outcome(encoder, images)
    surrounding = torch.nn.Sequential(encoder, torch.nn.Linear(11, 2)).train()
    encoder.network.backbone.layer2.eval()  # frozen
    before = {name: module.training for name, module in surrounding.named_modules()}
    state = {name: value.clone() for name, value in surrounding.state_dict().items()}
    assert True in before.values() and False in before.values()
    assert equal(outcome(encoder, images), expected)
    assert before == {name: module.training for name, module in surrounding.named_modules()}
    assert all(torch.equal(value, state[name]) for name, value in surrounding.state_dict().items())
    with pytest.raises(UserError):
        encoder.encode(["nowhere.jpg"])
    assert before == {name: module.training for name, module in surrounding.named_modules()}
    ready = encoder.preprocess(images)
    assert not torch.equal(encoder(ready), expected[0])  # a module's own forward follows the mode


def test_threads_encode_while_the_network_is_in_training_mode():
    encoder, images = small_encoder(), pictures(6, seed=5, size=40)
    expected = encoder.encode(images)
    encoder.network.train()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda n: encoder.encode(images, batch_size=1 + n % 3), range(12)))
    assert all(torch.equal(codes, expected) for codes in found)
    assert all(module.training for module in encoder.network.modules())


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        torch.enable_grad,
        torch.no_grad,
        torch.inference_mode,
    ],
)
def test_autocast_and_gradients_around_it_do_not_count(around):
    encoder, images = small_encoder(flip=True), pictures(5, seed=5, size=40)
    expected = outcome(encoder, images)
    with around():
        enabled = torch.is_grad_enabled()
        found = outcome(encoder, images)
        assert torch.is_grad_enabled() == enabled
    assert equal(found, expected) and not any(tensor.requires_grad for tensor in found)
    assert {tensor.dtype for tensor in found} == {torch.float32, torch.uint8, torch.int64}


def test_a_new_layer_can_be_trained_on_z():
    layer = torch.nn.Linear(11, 2)
    layer(small_encoder().project(pictures(3, seed=5, size=40))).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_loading_and_encoding_draw_no_random_numbers(tmp_path):
    small_encoder().save(tmp_path / "encoder.safetensors")
    images = pictures(3, seed=5, size=40)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    llc.load(tmp_path / "encoder.safetensors").classify(images)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_float64_default_changes_nothing():
    encoder, images = small_encoder(), pictures(3, seed=5, size=40)
    expected = outcome(encoder, images)
    torch.set_default_dtype(torch.float64)
    try:
        found, none = outcome(encoder, images), encoder.project([])
    finally:
        torch.set_default_dtype(torch.float32)
    assert equal(found, expected) and none.dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_z_that_is_no_number_is_an_error_with_the_number_of_images(value, tmp_path):
    encoder, images = small_encoder(), pictures(8, seed=5, size=40)
    means = images.float().mean((1, 2, 3))
    middle = means.sort().values[3:5].mean()
    bright = means > middle
    assert bright.sum() == 4

    def spoil(module, arguments, z):
        spoilt = arguments[0].float().mean((1, 2, 3)) > middle
        return torch.where(spoilt[:, None], value, z)

    encoder.preprocessing = dataclasses.replace(encoder.preprocessing, resolution=40, crop_ratio=1.0)
    encoder.network.register_forward_hook(spoil)
    first = int(bright.nonzero()[0, 0])
    message = rf"NaN or infinite for {bright.sum()} of 8 images.*\(the first: image {first}\)"
    for call in (encoder.project, encoder.encode, encoder.classify):
        with pytest.raises(UserError, match=message):
            call(images, batch_size=3)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match=rf"for {bright.sum()} of 8 images.*the first: {first}.png"):
        encode.encode(encoder, tmp_path, encode.Encoding(batch_size=3, device="cpu"))


# ------------------------------------------------------------------------------------ one file, and only data


def test_a_saved_encoder_is_the_encoder(tmp_path):
    encoder = small_encoder(
        flip=True, precision="fp32", stage="codebook", recipe={"model": {"arch": "resnet18"}}
    )
    encoder.save(tmp_path / "any name")
    again = llc.load(tmp_path / "any name")
    for name in ("preprocessing", "class_names", "flip", "precision", "stage", "recipe", "num_bits"):
        assert getattr(again, name) == getattr(encoder, name), name
    assert again.network.options == encoder.network.options and not again.training
    state = again.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in encoder.network.state_dict().items())
    images = pictures(6, seed=12, size=50)
    assert torch.equal(again.project(images), encoder.project(images))
    assert llc.load(tmp_path / "any name", class_names=NAMES[::-1]).class_names == NAMES[::-1]
    with pytest.raises(UserError, match="3 names, but the codebook has 7 classes"):
        llc.load(tmp_path / "any name", class_names=NAMES[:3])


def test_its_own_mean_and_std_are_used(tmp_path):
    network = trained_network("resnet18", 11, 7, width=8)
    preprocessing = Preprocessing(32, 1.0, "area", (0.4, 0.5, 0.6), (0.3, 0.2, 0.1))
    llc.Encoder(network, preprocessing).save(tmp_path / "encoder.safetensors")
    again = llc.load(tmp_path / "encoder.safetensors")
    images = pictures(2, seed=1, size=32)
    by_hand = (images / 255 - torch.tensor(preprocessing.mean)[:, None, None]) / torch.tensor(
        preprocessing.std
    )[:, None, None]
    expected = network.projection(network.backbone(by_hand))
    assert torch.allclose(again.project(images), expected, rtol=1e-5, atol=1e-4)


def described(path):
    """(tensors, metadata) of a saved encoder, to be changed."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["llc"])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t, d: d.update(format=99), "its format is 99"),
        (lambda t, d: d.pop("network"), "KeyError"),
        (lambda t, d: d["network"].update(arch="vit_b_16"), "not a ResNet"),
        (lambda t, d: d["network"].update(num_bits=10**15), "1 keys? of another shape|codebook"),
        (lambda t, d: d["network"].update(num_bits=-4), "no network can be built"),
        (lambda t, d: d["network"].update(width=10**9), "width|fit|built"),
        (lambda t, d: d["network"].update(extra=1), "no network can be built"),
        (lambda t, d: d["preprocessing"].update(resolution=10**9), "resolution = 1000000000"),
        (lambda t, d: d["preprocessing"].update(resize="nearest"), "resize = 'nearest'"),
        (lambda t, d: d["preprocessing"].update(std=[0, 1, 1]), "std"),
        (lambda t, d: d["preprocessing"].update(mean=[float("nan"), 1, 1]), "mean"),
        (lambda t, d: d.update(class_names=["a"]), "1 names"),
        (lambda t, d: d.update(class_names=[1, 2, 3, 4, 5, 6, 7]), "list of names"),
        (lambda t, d: d.update(flip="yes"), "flip = 'yes'"),
        (lambda t, d: d.update(precision="fp7"), "precision = 'fp7'"),
        (lambda t, d: d.update(recipe=[1]), "recipe"),
        (lambda t, d: t.pop("backbone.bn1.weight"), "1 keys missing: backbone.bn1.weight"),
        (lambda t, d: t.update(extra=torch.zeros(1)), "1 keys unknown: extra"),
        (
            lambda t, d: t.update({"projection.weight": torch.zeros(11, 63)}),
            r"projection.weight \(\[11, 63\] in the file",
        ),
    ],
)
def test_a_saved_file_that_says_nonsense_is_refused(change, message, tmp_path):
    small_encoder().save(tmp_path / "encoder.safetensors")
    tensors, description = described(tmp_path / "encoder.safetensors")
    change(tensors, description)
    save_file(tensors, tmp_path / "encoder.safetensors", {"llc": json.dumps(description)})
    with pytest.raises(UserError, match=message):
        llc.load(tmp_path / "encoder.safetensors")


def test_broken_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "encoder.safetensors"
    small_encoder().save(path)
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    rng = np.random.default_rng(0)
    contents = [whole[:n] for n in (0, 5, 8, 20, header, header + 9, len(whole) - 1)]
    contents += [struct.pack("<Q", 1 << 60) + whole[8:], b"", b"{" * 20]
    for _ in range(150):  # a changed byte of the header
        at = int(rng.integers(0, header + 8))
        contents.append(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(0, 8)))]) + whole[at + 1 :])
    refused = 0
    for content in contents:
        path.write_bytes(content)
        try:
            llc.load(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) or "names" in str(error) or "=" in str(error)
    assert refused >= 60
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not an encoder saved by llc, only tensors"):
        llc.load(path)


class Payload:
    def __reduce__(self):
        return open, ("this file must not be made", "w")


def test_no_file_runs_code(finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"fc_lr.weight": Payload()}}, "model.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload()))
    for name in ("model.pth", "plain.pth"):
        with pytest.raises(UserError, match=f"{name}: not a checkpoint of plain tensors"):
            llc.load(name)
    np.save("codebook.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="codebook.npy"):
        llc.load(finished_run, codebook="codebook.npy")
    assert not (tmp_path / "this file must not be made").exists()


def test_what_cannot_be_loaded_is_said(finished_run, tmp_path):
    for path, arguments, message in [
        (tmp_path / "nowhere", {}, "neither a run folder nor a file"),
        (tmp_path, {}, "not a run folder"),
        (
            finished_run,
            {"checkpoint": "middle"},
            "no checkpoint 'middle'; it has codebook, initial, instance, model_best",
        ),
        (finished_run / "checkpoints" / "instance.pth", {}, "load the run folder"),
        (finished_run / "codebook.npy", {}, "not a checkpoint of plain tensors: it is an array"),
        (finished_run / "decoder.npz", {}, "not a checkpoint of plain tensors: it is a file of arrays"),
        (finished_run / "config.yaml", {}, "of a run, name its folder"),
    ]:
        with pytest.raises(UserError, match=message):
            llc.load(path, **arguments)


def test_public_names_are_typed():
    assert (Path(llc.__file__).parent / "py.typed").is_file()
    functions = {name: getattr(llc, name) for name in llc.__all__ if inspect.isfunction(getattr(llc, name))}
    functions |= {
        f"Encoder.{name}": value
        for name, value in vars(llc.Encoder).items()
        if inspect.isfunction(value) and (not name.startswith("_") or name == "__init__")
    }
    assert {"load", "pack_bits", "decode_ed", "Encoder.encode", "Encoder.classify"} <= functions.keys()
    for name, function in functions.items():
        signature = inspect.signature(function)
        untyped = [
            p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"
        ]
        assert signature.return_annotation is not inspect.Signature.empty and not untyped, (
            f"{name}: {untyped}"
        )
