"""The decoders' accuracies: of a model's images, and of codes without a model."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from llc import hub
from llc.codebook import health
from llc.data.batches import Images
from llc.data.sources import printable
from llc.distributed import Processes
from llc.encode import check_out
from llc.encoder import Encoder, decoder_path, describe_non_finite
from llc.errors import UserError
from llc.evaluate.options import Options
from llc.evaluate.subject import CodeSet, CodesNetwork
from llc.evaluation import fitting, ood
from llc.evaluation.decoders import DECODERS, Decoder, bind, fitted_decoders, fraction, usable
from llc.evaluation.metrics import name, stage_of
from llc.evaluation.predict import Predictions, encode_all, predict
from llc.precision import autocast_for

CODES = "codes"  # in place of a stage, for codes without a model
_ROWS = 1 << 16  # codes without a model are decoded this many at a time


def fit_decoder(
    title: str, encoder: Encoder, train: Images, val: Images, processes: Processes, options: Options
) -> None:
    """Fits the decoders that learn to the train images, and writes them. Raises UserError."""
    given = f"--fit_decoder={printable(options.fit_decoder)}"
    if hub.is_address(title) and not options.decoder:
        raise UserError(f"{given}: {title} is no file here; name the file to write with --decoder=FILE.npz")
    path = Path(options.decoder or decoder_path(title))
    if train.identity == val.identity:
        raise UserError(
            f"{given}: these are the images of data.val_dataset; decoders learn from the train set, or their "
            "accuracy on val would mean nothing"
        )
    if train.split == "val":
        raise UserError(f"{given}: a val split, as its manifest says; decoders learn from the train set")

    def check() -> None:
        check_out(str(path), "--decoder")
        if path.exists():
            raise UserError(
                f"{printable(path)} exists already; use it, without --fit_decoder, or remove it first, or "
                "name another file to write with --decoder=FILE.npz"
            )

    def fit() -> fitting.Fitted:
        found = fitting.fit(encoder.network, codes, labels, source=options.fit_decoder, images=train.identity)
        found.save(path)
        print(f"{printable(path)}: fitted to {found.num_images:,} images of {printable(options.fit_decoder)}")
        return found

    processes.on_main(check)
    encoder.to(processes.device)
    autocast, _ = autocast_for(encoder.precision, processes.device)
    codes, labels = encode_all(encoder.network, train.loader, processes, flip=encoder.flip, autocast=autocast)
    encoder.fitted = processes.on_main(fit)


def check_decoder(title: str, options: Options) -> None:
    """Raises UserError if decoders of the first bits would be written where those of whole codes belong."""
    own = decoder_path(title)
    if options.fit_decoder and Path(options.decoder or own).resolve() == own.resolve():
        raise UserError(
            f"--fit_decoder with --num_bits={options.num_bits}: {printable(own)} is for decoders of whole "
            "codes; name a file for decoders of so many bits, with --decoder=FILE.npz"
        )


def predict_stages(
    title: str, encoders: Mapping[str, Encoder], images: Images, processes: Processes, scores: bool
) -> dict[str, dict[str, Predictions]]:
    """{stage: the result of llc.evaluation.predict.predict}. Raises UserError where z is NaN or infinite.

    scores: also compute those of llc.evaluation.ood, for the last stage.
    """
    predictions = {}
    last = list(encoders)[-1]
    for stage, encoder in encoders.items():
        encoder.to(processes.device)
        learnt = learnt_of(encoder, images)
        autocast, _ = autocast_for(encoder.precision, processes.device)
        predictions[stage] = predict(
            encoder.network,
            images.loader,
            processes,
            flip=encoder.flip,
            autocast=autocast,
            num_classes=len(encoder.codebook),
            learnt=learnt,
            measure=ood.bind_all(encoder.network, learnt) if scores and stage == last else {},
        )
    for stage, of_stage in predictions.items():
        # The mean over an image and its mirror image is NaN or infinite where one of the two is.
        broken = max(int(of_view.num_non_finite) for of_view in of_stage.values())
        if broken:
            what = describe_non_finite(broken, images.num_samples)
            raise UserError(f"{printable(title)}, stage {stage}: z is {what}")
    return predictions


def fit_codes(train: CodeSet, network: CodesNetwork) -> dict[str, Any]:
    """{decoder: what it learnt} of the codes of a train set."""
    return {name: one.fit(train.codes, train.labels, network) for name, one in fitted_decoders().items()}


@torch.inference_mode()
def predict_codes(codes: CodeSet, network: CodesNetwork, learnt: Mapping[str, Any]) -> dict[str, Predictions]:
    """The decoders' answers for codes without a model, in the form of llc.evaluation.predict.predict.

    Decoders that read z are left out.
    """
    ranks = {one: bind(one, network, learnt) for one in usable(learnt) if DECODERS[one].of_image_codes}
    depths = {one: min(DECODERS[one].depth, len(network.codebook)) for one in ranks}
    packed = torch.from_numpy(codes.codes)
    parts = []
    for part in packed.split(_ROWS):
        z = network(part)
        parts.append({one: rank(z, depths[one]) for one, rank in ranks.items()})
    answers = {one: tuple(map(torch.cat, zip(*(part[one] for part in parts)))) for one in ranks}
    return {"": Predictions(torch.from_numpy(codes.labels), packed, answers, torch.tensor(0))}


def learnt_of(encoder: Encoder, images: Images) -> Mapping[str, Any]:
    """What decoders learnt, unless it was from these images."""
    known = encoder.fitted is not None and encoder.fitted.images
    return {} if known and known == images.identity else encoder.learnt


def report(
    metrics: Mapping[str, Mapping[str, float]],
    codebook: torch.Tensor,
    flip: bool = False,
    published: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Prints a line per decoder, and one on the class codes.

    metrics: {stage: its metrics}; a decoder's line shows those of the stage that learns what it reads.
    published: {decoder: top-1 in %}, shown beside it.
    """
    for decoder in DECODERS.values():
        top1 = name("top1", decoder.name, flip)
        measured = [stage for stage in metrics if top1 in metrics[stage]]
        if not measured:
            continue
        of_stage = metrics[_stage_of(decoder, measured)]
        percent = {
            metric: 100 * of_stage[full_name]
            for metric in ("top1", "top5", *decoder.details)
            if (full_name := name(metric, decoder.name, flip)) in of_stage
        }
        line = f"  {decoder.title:12s} top-1 {percent['top1']:6.2f} %"
        if decoder.name in published:
            line += f"   published {published[decoder.name]} %"
        if "top5" in percent:
            line += f"   top-5 {percent['top5']:6.2f} %"
        for metric, words in decoder.details.items():
            line += f"   {words} {percent[metric]:.2f} %"
        print(line)
    print(f"  {health(codebook)}")


def check_probabilities(title: str, encoder: Encoder, images: Images, min_probability: float) -> None:
    """Raises UserError if --min_probability is given and no decoder would give probabilities."""
    usable_here = usable(learnt_of(encoder, images))
    if min_probability and not any(DECODERS[name_].gives_probabilities for name_ in usable_here):
        raise UserError(
            f"--min_probability={min_probability:g}: no decoder that gives probabilities is fitted to codes "
            f"of {encoder.num_bits} bits of {printable(title)}, or only one that learnt from these images; "
            "--fit_decoder=TRAIN fits one"
        )


def report_accepted(
    predictions: Mapping[str, Mapping[str, Predictions]], view: str, min_probability: float
) -> None:
    """Prints how many images have a class of at least this probability, and the accuracy on them.

    predictions: {stage: {view: Predictions}}; view: which of them.
    """
    for name_, decoder in DECODERS.items():
        measured = [stage for stage, views in predictions.items() if name_ in views[""].answers]
        if not decoder.gives_probabilities or not measured:
            continue
        of_view = predictions[_stage_of(decoder, measured)][view]
        classes, probabilities = of_view.answers[name_]
        accepted = probabilities[:, 0] >= min_probability
        right = (classes[:, 0] == of_view.labels)[accepted]
        line = f"  {decoder.title:12s} probability {min_probability:g} or more: {len(right):,} images"
        print(f"{line}, top-1 {100 * fraction(right):.2f} % on them" if len(right) else line)


def _stage_of(decoder: Decoder, measured: list[str]) -> str:
    return CODES if CODES in measured else stage_of(decoder, measured)
