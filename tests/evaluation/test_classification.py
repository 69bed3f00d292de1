"""Metrics against a double loop, with ties and collisions; predictions in parts; a decoder's contract."""

import contextlib

import pytest
import torch

from llc.codes import pack_bits
from llc.distributed import Processes
from llc.evaluation import decoders, metrics
from llc.evaluation.decoders import DECODERS, Decoder, register
from llc.evaluation.predict import Predictions, predict
from llc.network import Network
from llc.stages import CodebookStage, InstanceStage, JointStage


def small_network(kind=Network, num_bits=9, num_classes=7):
    torch.manual_seed(0)
    network = kind("resnet18", num_bits, num_classes, width=4)
    torch.nn.init.normal_(network.codebook)
    return network


def test_metrics_equal_a_double_loop():
    generator = torch.Generator().manual_seed(3)
    network = small_network(num_bits=6, num_classes=9)
    codebook = torch.randn(9, 6, generator=generator)
    codebook[7] = codebook[2]  # a collision
    network.codebook.data.copy_(codebook)
    z = torch.randn(200, 6, generator=generator)
    labels = torch.randint(0, 9, (200,), generator=generator)
    z[:120] = codebook[labels[:120]] * (1 - 2.0 * (torch.rand(120, 6, generator=generator) < 0.1))
    learnt = {"posterior": DECODERS["posterior"].fit(pack_bits(z[:60]).numpy(), labels[:60].numpy(), network)}
    with torch.no_grad():
        answers = {
            name: decoders.bind(name, network, learnt)(z, min(decoder.depth, 9))
            for name, decoder in DECODERS.items()
        }
    values = metrics.evaluate({"": Predictions(labels, pack_bits(z), answers, torch.tensor(0))}, 9)

    names = "class", "mhd", "ed"
    hits = dict.fromkeys((*(f"top1_{name}" for name in names), "top5_class", "top5_mhd"), 0)
    hits |= dict.fromkeys(("none_ed", "tied_mhd", "tied5_mhd"), 0)
    for row, label in zip(z.tolist(), labels.tolist()):
        distances = [sum((a > 0) != (b > 0) for a, b in zip(row, code)) for code in codebook.tolist()]
        order = sorted(range(9), key=lambda c: (distances[c], c))
        ranked = sorted(distances)
        logits = [sum(a * (1 if b > 0 else -1) for a, b in zip(row, code)) for code in codebook.tolist()]
        by_logits = sorted(range(9), key=lambda c: (-logits[c], c))
        hits["top1_class"] += by_logits[0] == label
        hits["top5_class"] += label in by_logits[:5]
        hits["top1_mhd"] += order[0] == label
        hits["top5_mhd"] += label in order[:5]
        hits["top1_ed"] += ranked[0] == 0 and order[0] == label
        hits["none_ed"] += ranked[0] != 0
        hits["tied_mhd"] += ranked[0] == ranked[1]
        hits["tied5_mhd"] += ranked[4] == ranked[5]
    expected_hits, in_bin = [0.0] * 15, [0.0] * 15
    hits |= {"top1_posterior": 0, "top5_posterior": 0}
    for row, probabilities, label in zip(*(part.tolist() for part in answers["posterior"]), labels.tolist()):
        hits["top1_posterior"] += row[0] == label
        hits["top5_posterior"] += label in row
        of_bin = next(b for b in range(15) if probabilities[0] <= (b + 1) / 15)
        expected_hits[of_bin] += probabilities[0]
        in_bin[of_bin] += row[0] == label
    hits["ece_posterior"] = sum(abs(a - b) for a, b in zip(expected_hits, in_bin))
    assert all(0 < count < 200 for count in hits.values())
    assert values == pytest.approx({name: count / 200 for name, count in hits.items()}, abs=1e-12)


def test_with_few_classes_there_are_no_ties_across_the_fifth_place():
    network = small_network(num_bits=6, num_classes=1)
    z, labels = torch.randn(4, 6), torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        answers = {name: decoders.bind(name, network)(z, 1) for name in decoders.usable({})}
    values = metrics.evaluate(
        {"_flip": Predictions(labels, pack_bits(z), answers, torch.tensor(0))}, 1, ema=True
    )
    assert values["top1_mhd_flip_ema"] == values["top5_class_flip_ema"] == 1
    assert values["tied_mhd_flip_ema"] == values["tied5_mhd_flip_ema"] == 0


def test_headlines_are_of_what_a_stage_learns():
    assert metrics.headlines(CodebookStage, flip=False) == ["top1_class"]
    of_codes = ["top1_mhd", "top1_ed", "top1_posterior"]
    assert metrics.headlines(InstanceStage, flip=True) == [f"{name}_flip" for name in of_codes]
    assert metrics.headlines(JointStage, flip=False) == ["top1_class", *of_codes]
    names = ["codebook", "instance"]
    assert [metrics.stage_of(DECODERS[d], names) for d in ("class", "ed")] == names


# ------------------------------------------------------------------------------------------------ predict


class _SmallDevice(Network):
    """Has memory for `room` images at once."""

    room, asked = None, []

    def forward(self, images):
        self.asked.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        return super().forward(images)


def pixels(*sizes):
    return [(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.arange(n)) for n in sizes]


def predictions_of(network, batches):
    return predict(network, batches, Processes(), flip=True, autocast=contextlib.nullcontext, num_classes=7)


def test_a_batch_too_large_for_the_device_is_processed_in_parts():
    network = small_network(_SmallDevice)
    batches = pixels(13, 13, 4)

    def predictions(room):
        network.room, network.asked = room, []
        return predictions_of(network, batches)

    whole, parts = predictions(13), predictions(5)
    # Halved until it fits; later batches keep the size.
    assert network.asked[:6] == [13, 7, 4, 4, 4, 1] and max(network.asked[2:]) == 4
    for view, expected in whole.items():
        arrays = parts[view].arrays()
        assert set(arrays) == {"labels", "codes", "top_class", "top_mhd", "top_ed"}
        assert all((arrays[name] == array).all() for name, array in expected.arrays().items())
        assert len(arrays["labels"]) == 30
    with pytest.raises(torch.OutOfMemoryError):
        predictions(0)


def test_images_whose_z_is_no_number_are_counted():
    network = small_network()

    def spoil(module, arguments, z):  # of the batches that are 8 long: the first two images, the last one
        z = z.clone()
        if len(z) == 8:
            z[:2, 3], z[7, 0] = float("nan"), float("inf")
        return z

    assert [int(of.num_non_finite) for of in predictions_of(network, pixels(8, 5)).values()] == [0, 0]
    network.register_forward_hook(spoil)
    found = predictions_of(network, pixels(8, 5, 8))
    assert {view: int(of_view.num_non_finite) for view, of_view in found.items()} == {"": 6, "_flip": 6}


def test_predict_puts_each_module_back_into_its_mode():
    network = small_network().train()
    network.backbone.layer1.eval()  # frozen, as a plugin may have it
    before = {name: module.training for name, module in network.named_modules()}
    modes_within = []
    network.projection.register_forward_hook(lambda *_: modes_within.append(any_training(network)))
    predictions_of(network, pixels(3))
    assert modes_within and not any(modes_within)
    assert {name: module.training for name, module in network.named_modules()} == before
    assert network.training and not network.backbone.layer1[0].bn1.training

    def broken():
        yield from pixels(2)
        raise RuntimeError("a bad batch")

    with pytest.raises(RuntimeError, match="a bad batch"):
        predictions_of(network, broken())
    assert {name: module.training for name, module in network.named_modules()} == before


def any_training(network):
    return any(module.training for module in network.modules())


def test_a_process_without_images_has_empty_predictions():
    for of_view in predictions_of(small_network(), []).values():
        arrays = of_view.arrays()
        assert {len(array) for array in arrays.values()} == {0}
        assert arrays["codes"].shape == (0, 2) and arrays["top_mhd"].shape == (0, 6)


# ----------------------------------------------------------------------------------------------- registration


@pytest.fixture
def table():
    """The table of decoders, restored afterwards."""
    before = dict(DECODERS)
    yield DECODERS
    DECODERS.clear()
    DECODERS.update(before)


def made(**attributes):
    attributes = {"name": "own", "title": "own", "short": "own", "of_image_codes": True, **attributes}
    return type("Own", (Decoder,), {key: value for key, value in attributes.items() if value is not None})


@pytest.mark.parametrize(
    "attributes, message",
    [
        ({"name": "mhd"}, "'mhd' is registered already, as MHD"),
        ({"name": "my_own"}, "expected letters and digits"),
        ({"name": "flip"}, "but not flip or ema"),
        ({"title": None, "of_image_codes": None}, "the class has no title, of_image_codes"),
    ],
)
def test_a_decoder_that_cannot_be_registered(attributes, message, table):
    with pytest.raises(ValueError, match=message):
        register(made(**attributes))
    assert list(table) == ["class", "mhd", "ed", "posterior"]


@pytest.mark.parametrize(
    "answer",
    [
        lambda z, k: (torch.zeros(len(z), dtype=torch.int64), torch.zeros(len(z))),
        lambda z, k: (torch.zeros(len(z), 1, dtype=torch.int32), torch.zeros(len(z), 1)),
        lambda z, k: (torch.zeros(len(z), k + 1, dtype=torch.int64), torch.zeros(len(z), k + 1)),
        lambda z, k: (torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1)),
        lambda z, k: (torch.zeros(len(z), 1, dtype=torch.int64), torch.zeros(len(z))),
    ],
)
def test_answers_of_a_wrong_shape_or_type_are_an_error(answer, table):
    register(made(bind=lambda self, network: answer))
    with pytest.raises(ValueError, match=r"decoder 'own': expected classes int64 \[3, 1 to 2\]"):
        decoders.bind("own", small_network())(torch.zeros(3, 9), 2)


def test_metrics_that_reports_need_are_asked_for(table):
    def answer(z, k):
        return torch.zeros(len(z), 1, dtype=torch.int64), torch.zeros(len(z), 1)

    register(made(bind=lambda self, network: answer, details={"odd": "odd"}))
    with pytest.raises(ValueError, match="'own': its metrics are top1, top5; missing: odd"):
        metrics.evaluate(predictions_of(small_network(), pixels(2)), 7)
