"""Codes without a model evaluated, such as those of any other encoder."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llc import environment
from llc.code_files import write_arrays
from llc.codebook import majority_codes
from llc.data.reading import Reading
from llc.data.sources import printable
from llc.errors import UserError
from llc.evaluate import accuracy
from llc.evaluate.options import Options
from llc.evaluate.subject import CodeSet, CodesNetwork, Subject, are_equal, read_code_set
from llc.evaluate.uses import Uses, check_outs, write_figures
from llc.evaluation.metrics import evaluate as metrics_of


def evaluate(options: Options, uses: Mapping[str, Any]) -> None:
    """Measures the codes of the file options.model, prints the reports and writes the files.

    Of several processes, the first does it all. Raises UserError.
    """
    if environment.rank():
        return
    _check_flags(options, uses)
    check_outs(options, uses)
    codes = read_code_set(options.model, "MODEL")
    subject = Subject(options.model, codes.num_bits, of_codes=codes.network)
    train = subject.find(options.fit_decoder, "fit_decoder") if options.fit_decoder else None
    plan, metrics, learnt, predictions = Uses(uses, "MODEL"), {}, {}, None
    if plan:
        plan.find(subject, codes)
    if train is not None:
        codes = _checked(train, codes)
        num_classes = int(train.labels.max()) + 1
        subject.class_codes = majority_codes(train.codes, train.labels, num_classes, train.num_bits)
        network = CodesNetwork(subject.class_codes, train.num_bits)
        learnt = accuracy.fit_codes(train, network)
        if options.predictions or not uses["ood"].dataset or (codes.labels >= 0).any():
            codes.check_labelled("MODEL")
            predictions = accuracy.predict_codes(codes, network, learnt)
            metrics = {accuracy.CODES: metrics_of(predictions, num_classes)}
    if plan:
        plan.collect(codes, learnt)
    figures = plan.measure()
    write_figures(options.json, metrics, figures)  # before anything is printed, because printing may fail
    if predictions is not None and options.predictions:
        write_arrays(options.predictions, predictions[""].arrays())
    print(f"{printable(options.model)}: {len(codes)} codes of {codes.num_bits} bits")
    if predictions is not None:
        accuracy.report(metrics, network.codebook)
        if options.min_probability:
            accuracy.report_accepted({accuracy.CODES: predictions}, "", options.min_probability)
    plan.report()


def _check_flags(options: Options, uses: Mapping[str, Any]) -> None:
    """Raises UserError for flags that are of no use with codes, and where nothing is asked for."""
    of_images = [field.name for field in dataclasses.fields(Reading)]
    defaults = {field.name: field.default for field in dataclasses.fields(options)}

    def refuse(names: Sequence[str], why: str) -> None:
        for name in names:
            if getattr(options, name) != defaults[name]:
                raise UserError(f"--{name}={getattr(options, name)}: {printable(options.model)} {why}")

    refuse(("original", "codebook", "num_bits", "decoder"), "holds codes, and this flag is for a model")
    refuse(of_images, "holds codes, and this flag is for images")
    if not options.fit_decoder:
        refuse(("predictions", "min_probability"), "has no classes yet: name its train set, --fit_decoder")
        if uses["ood"].dataset or not uses["retrieval"].database:
            raise UserError(
                f"{printable(options.model)}: a file of codes has no class codes to compare them with: for "
                "accuracies and --ood.dataset give the codes of its train set, --fit_decoder=train.npz, or "
                "give --retrieval.database"
            )


def _checked(train: CodeSet, codes: CodeSet) -> CodeSet:
    """`codes` with labels by the train set's classes. Raises UserError where they cannot be compared."""
    train.check_labelled("fit_decoder")
    # Where each image has just its class's code, those of other images can be equal, too.
    says_more = len(np.unique(train.codes, axis=0)) > len(np.unique(train.labels))
    same_file = os.path.realpath(train.title) == os.path.realpath(codes.title)
    if same_file or says_more and are_equal(train, codes):
        raise UserError(
            f"--fit_decoder={printable(train.title)}: these are the codes of {printable(codes.title)}; "
            "decoders learn from the train set, or their accuracy would mean nothing"
        )
    codes = codes.relabelled(train.class_names, "MODEL")
    num_classes = len(train.class_names) or int(train.labels.max()) + 1
    if codes.labels.max() >= num_classes:
        raise UserError(
            f"{printable(codes.title)}: its labels go up to {codes.labels.max()}, those of "
            f"{printable(train.title)} only to {num_classes - 1}"
        )
    if num_classes > len(train):
        raise UserError(
            f"--fit_decoder={printable(train.title)}: its labels go up to {num_classes - 1}, but it has only "
            f"{len(train):,} codes; each class needs some, because their majority is the class's code"
        )
    without = np.flatnonzero(np.bincount(train.labels, minlength=num_classes) == 0)
    if len(without):
        raise UserError(
            f"--fit_decoder={printable(train.title)}: {len(without)} of {num_classes} classes have no codes "
            f"(the first: number {without[0]}); each needs some, because their majority is the class's code"
        )
    return codes
