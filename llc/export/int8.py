"""--quantize=int8: the ONNX graph with weights and activations of 8 bits, and what that costs."""

import json
import logging
import tempfile
from pathlib import Path

import numpy as np
import torch

from llc.encode import check_out
from llc.errors import UserError
from llc.evaluation.decoders import DECODERS, bind, usable
from llc.export import check, onnx_model
from llc.export.graph import description, names_of
from llc.files import atomic_write
from llc.inference import evaluating

# What a network spends its time on, and what lies between, so that numbers need not leave 8 bits.
OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "MaxPool", "GlobalAveragePool")


def path_beside(path):
    return path.with_name(f"{path.stem}_int8{path.suffix}")


def calibration(encoder, path, options):
    """The images to calibrate with, a check.Sample.

    Raises UserError unless there are some, and a place for the file beside the model's `path`.
    """
    check_out(path_beside(path), "--out")
    own = check.of_run(options, "train_dataset")
    if not (options.calibration or own):
        raise UserError(
            "--quantize=int8 measures on images how large activations become: name some with "
            "--calibration=IMAGES, preferably of the train set"
        )
    return check.take(
        encoder,
        options.calibration or own,
        options,
        options.calibration_images,
        split=options.calibration_split,
    )


def write(model, encoder, path, options, images, sample):
    """Writes the quantised model beside the float model's `path`, and prints what differs.

    model: the float ModelProto, which also gives z. images: those of `calibration`. sample: the images that
    both are measured on, or None.
    """
    made = _quantised(model, images)
    entry = next((entry for entry in made.metadata_props if entry.key == "llc"), None)
    entry = made.metadata_props.add() if entry is None else entry
    entry.key, entry.value = "llc", json.dumps(description(encoder) | {"quantize": "int8"})
    wanted = onnx_model.with_outputs(made, names_of(options.outputs))
    path = path_beside(path)
    replaced = path.exists()
    data = wanted.SerializeToString()
    atomic_write(path, lambda file: file.write(data), check=lambda temporary: onnx_model.session(temporary))
    size = f"{path.stat().st_size / 1e6:,.1f} MB" + (", replaced" if replaced else "")
    print(f"{path}: int8, {size}, the same input and outputs")
    print(f"  calibrated with {images.num_images:,} images of {images.title}")
    if sample is not None:
        print(_compared(model, made, encoder, sample))


def _quantised(model, images):
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.batches = iter(images)

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch[0].contiguous().numpy()}

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            # from a file, because of a ModelProto it would move the weights to another file
            source, out = (Path(folder) / name for name in ("float.onnx", "int8.onnx"))
            onnx.save(model, source)
            quantization.quantize_static(
                source,
                out,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=list(OPERATORS),
                nodes_to_exclude=_after_features(model.graph),
            )
            return onnx.load(out)
    except UserError:
        raise
    except Exception as error:  # of many kinds: what backbones from outside llc have in their graphs
        raise UserError(
            f"onnxruntime cannot quantise this model: {type(error).__name__}: "
            f"{str(error).strip()[:300]}; the float file is written"
        ) from error
    finally:
        logging.disable(before)


def _after_features(graph):
    """Names of the nodes that stay float: the projection, whose signs are the code, and all after it.

    The nodes are in an order in which each comes after those that it takes values from.
    """
    makers = {name: node for node in graph.node for name in node.output}
    node = makers["z"]
    while node.op_type not in ("Gemm", "MatMul"):  # back from z to the projection
        node = next(makers[name] for name in node.input if name in makers)
    before, waiting = set(), [node]
    while waiting:
        for name in waiting.pop().input:
            if name in makers and makers[name].name not in before:
                before.add(makers[name].name)
                waiting.append(makers[name])
    return [other.name for other in graph.node if other.name not in before]


@torch.inference_mode()
def _compared(model, quantised, encoder, sample):
    """The two models on the same images, a line each: accuracies, size; and how many bits differ."""
    runs = [
        onnx_model.runner(onnx_model.session(onnx_model.with_outputs(either, ["z"]).SerializeToString()))
        for either in (model, quantised)
    ]
    names = [name for name in ("class", "mhd", "posterior") if name in usable(encoder.learnt)]
    names = names if len(encoder.codebook) else []
    ranks = {name: bind(name, encoder.network, encoder.learnt) for name in names}
    hits, num_labelled, differing, num_bits = np.zeros((2, len(names)), int), 0, 0, 0
    with evaluating(encoder.network):
        for images, labels in sample:
            both = [torch.from_numpy(run(images)["z"]) for run in runs]
            differing += int(((both[0] > 0) != (both[1] > 0)).sum())
            num_bits += both[0].numel()
            num_labelled += int((labels >= 0).sum())
            for row, z in enumerate(both):
                for column, name in enumerate(names):
                    hits[row, column] += int((ranks[name](z, 1)[0][:, 0] == labels)[labels >= 0].sum())
    lines = [
        f"  on {sample.num_images:,} images of {sample.title}, {differing / num_bits:.2%} of the bits differ "
        "from the float model's"
    ]
    if names and num_labelled:
        titles = [DECODERS[name].title for name in names]
        lines.append("           " + "  ".join(f"{title:>12}" for title in titles))
        for title, row in zip(("float", "int8"), hits):
            lines.append(f"  {title:7}  " + "  ".join(f"{count / num_labelled:12.2%}" for count in row))
    return "\n".join(lines)
