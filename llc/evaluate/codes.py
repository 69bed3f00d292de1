"""Codes without a model evaluated, such as those of any other encoder."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llc.code_files import write_arrays
from llc.data.sources import printable
from llc.errors import UserError
from llc.evaluate import accuracy
from llc.evaluate.options import Options
from llc.evaluate.subject import CodeSet, CodesNetwork, Subject, read_code_set
from llc.evaluate.uses import Uses, check_outs, write_figures
from llc.evaluation.metrics import evaluate as metrics_of
from llc.evaluation.taxonomy import majority_codes

STAGE = accuracy.CODES


def evaluate(options: Options, uses: Mapping[str, Any]) -> None:
    """Measures the codes of the file options.model, prints the reports and writes the files.

    Raises UserError.
    """
    path = options.model
    for flag in ("original", "codebook", "num_bits", "decoder"):
        if getattr(options, flag):
            raise UserError(f"--{flag}={getattr(options, flag)}: not together with a .npz of codes ({path})")
    if not options.fit_decoder and (uses["ood"].dataset or not uses["retrieval"].database):
        raise UserError(
            f"{printable(path)}: a file of codes has no class codes to compare them with: for accuracies and "
            "--ood.dataset give the codes of its train set, --fit_decoder=train.npz, or give "
            "--retrieval.database"
        )
    check_outs(options, uses)
    codes = read_code_set(path, "MODEL")
    subject = Subject(path, codes.num_bits)
    train = subject.find(options.fit_decoder, "fit_decoder") if options.fit_decoder else None
    plan, metrics, learnt = Uses(uses, "MODEL"), {}, {}
    if plan:
        plan.find(subject, codes)
    if train is not None:
        train, codes = _checked(train, codes)
        num_classes = int(train.labels.max()) + 1
        subject.class_codes = majority_codes(train.codes, train.labels, num_classes, train.num_bits)
        network = CodesNetwork(subject.class_codes, train.num_bits)
        learnt = accuracy.fit_codes(train, network)
        predictions = accuracy.predict_codes(codes, network, learnt)
        metrics = {STAGE: metrics_of(predictions, len(network.codebook))}
    if plan:
        plan.collect(codes, learnt)
    if train is not None and options.predictions:
        write_arrays(options.predictions, predictions[""].arrays())
    print(f"{printable(path)}: {len(codes)} codes of {codes.num_bits} bits")
    if train is not None:
        accuracy.report(metrics, network.codebook)
        if options.min_probability:
            accuracy.report_accepted({STAGE: predictions}, "", options.min_probability)
    write_figures(options.json, metrics, plan.report())


def _checked(train: CodeSet, codes: CodeSet) -> tuple[CodeSet, CodeSet]:
    """The two sets with labels by the train set's classes. Raises UserError where they cannot be compared."""
    train.check_labelled("fit_decoder")
    codes.check_labelled("MODEL")
    if np.array_equal(train.codes, codes.codes) and np.array_equal(train.labels, codes.labels):
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
    without = np.flatnonzero(np.bincount(train.labels, minlength=num_classes) == 0)
    if len(without):
        raise UserError(
            f"--fit_decoder={printable(train.title)}: {len(without)} of {num_classes} classes have no codes "
            f"(the first: number {without[0]}); each needs some, because their majority is the class's code"
        )
    return train, codes
