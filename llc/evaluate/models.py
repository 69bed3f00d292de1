"""A trained model evaluated: its decoders, and what its codes are used for."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from llc.code_files import write_arrays
from llc.data.batches import Images, open_images
from llc.data.preprocessing import Preprocessing
from llc.data.sources import printable
from llc.distributed import Processes
from llc.encoder import Encoder
from llc.errors import UserError
from llc.evaluate import accuracy
from llc.evaluate.options import Options
from llc.evaluate.subject import CodeSet, Subject
from llc.evaluate.uses import Uses, check_outs, write_figures
from llc.evaluation import fitting
from llc.evaluation.metrics import FLIP
from llc.evaluation.metrics import evaluate as metrics_of
from llc.evaluation.predict import Predictions
from llc.stages import STAGES

VAL = "data.val_dataset"


def evaluate(
    encoders: dict[str, Encoder],
    title: str,
    preprocessing: Preprocessing,
    data: Any,
    validation: Any,
    dist: Any,
    options: Options,
    uses: Mapping[str, Any],
    published: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Runs the encoders over the data; the main process writes the files and prints the reports.

    encoders: {stage: Encoder} of whole codes, all with the same codebook and flip, the one for image codes
    last; data, validation, dist: the sections of a recipe, or those of llc.evaluate.options; uses: {section:
    options} of USES.
    """
    whole = list(encoders.values())[-1]
    if options.num_bits:
        encoders = {stage: encoder.first_bits(options.num_bits) for stage, encoder in encoders.items()}
    last = list(encoders.values())[-1]
    if options.fit_decoder:
        last.check_codes()
    if last.num_bits < whole.num_bits:
        accuracy.check_decoder(title, options)
    if options.decoder and not options.fit_decoder:
        last.fitted = fitting.read(options.decoder, last.network)
    processes = Processes.start(dist.timeout_minutes, backend=dist.backend)
    try:
        with processes.watched():
            processes.on_main(lambda: check_outs(options, uses, data.val_dataset))

            def opened(path: str, class_names: Sequence[str] | None = None) -> Images:
                return open_images(
                    path,
                    preprocessing,
                    batch_size=validation.batch_size,
                    num_workers=data.num_workers or -1,  # recipes may say 0, which means the same
                    processes=processes,
                    class_names=class_names,
                    reading=options,
                )

            def of_its_classes(path: str, key: str) -> Images:
                images = opened(path, last.class_names if last.named else None)
                _check_classes(images, f"{key} = {printable(path)}", title, len(last.codebook))
                return images

            # All are opened before anything is computed, so that a wrong path costs no time.
            images = of_its_classes(data.val_dataset, VAL)
            train = of_its_classes(options.fit_decoder, "fit_decoder") if options.fit_decoder else None
            plan = Uses(uses, VAL)
            if plan:
                plan.find(Subject.of(title, last, processes, opened), images)
            if train is not None:
                accuracy.fit_decoder(title, last, train, images, processes, options)
            accuracy.check_probabilities(title, last, images, options.min_probability)
            wants_scores = bool(uses["ood"].dataset)
            predictions = accuracy.predict_stages(title, encoders, images, processes, wants_scores)
            of_last = list(predictions.values())[-1][FLIP if last.flip else ""]
            if plan:
                codes = _code_set(data.val_dataset, last, of_last, images)
                plan.collect(codes, accuracy.learnt_of(last, images))
        if not processes.is_main:
            return
        metrics = {
            stage: metrics_of(of_stage, len(last.codebook), codes=not STAGES[stage].dense)
            for stage, of_stage in predictions.items()
        }
        # Files come before anything is printed, because printing may fail.
        write_figures(options.json, metrics, plan.measure())
        if options.predictions:
            write_arrays(options.predictions, of_last.arrays())
        _report(title, images, whole, last, metrics, published)
        if options.min_probability:
            accuracy.report_accepted(predictions, FLIP if last.flip else "", options.min_probability)
        plan.report()
    finally:
        processes.stop()


def _report(
    title: str,
    images: Images,
    whole: Encoder,
    last: Encoder,
    metrics: Mapping[str, Mapping[str, float]],
    published: Mapping[str, float],
) -> None:
    """Prints the decoders' figures. whole: the encoder of whole codes; last: that of the bits in use."""
    for note in images.notes:
        print(printable(note))
    flipped = ", left-right flips averaged" if last.flip else ""
    print(f"{printable(title)}: {images.num_samples} images, {last.num_bits} bits{flipped}")
    if published:
        print(
            f"  (the network of the {last.stage} stage; published: ResNet50, 20 bits, ImageNet-1K, class "
            "codes by the codebook stage's network, MHD and ED by the instance stage's)"
        )
    accuracy.report(metrics, last.codebook, last.flip, published)
    if whole.learnt and not last.learnt:
        print(f"  {', '.join(whole.learnt)}: fitted to all {whole.num_bits} bits, so not used")
    if last.learnt and not accuracy.learnt_of(last, images):
        print(f"  {', '.join(last.learnt)}: fitted to these very images, so not measured on them")


def _check_classes(images: Images, where: str, title: str, num_classes: int) -> None:
    """Raises UserError unless each image has a label and there are num_classes classes."""
    if images.num_unlabelled:
        raise UserError(
            f"{where}: {images.num_unlabelled:,} of {images.num_samples:,} images have no label, and each "
            "needs one: give one folder of images per class, a table with --label_column=NAME, or a beton; "
            "python -m llc.encode takes images without labels"
        )
    if len(images.class_names) != num_classes:
        raise UserError(
            f"{where} has {len(images.class_names)} classes, {printable(title)} has {num_classes}"
        )


def _code_set(title: str, encoder: Encoder, predictions: Predictions, images: Images) -> CodeSet:
    codes, labels = predictions.codes.cpu().numpy(), predictions.labels.cpu().numpy()
    scores = {name: of_images.cpu().numpy() for name, of_images in predictions.measured.items()}
    return CodeSet(title, encoder.num_bits, codes, labels, tuple(images.class_names), scores)
