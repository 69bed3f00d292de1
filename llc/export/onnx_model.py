"""--to=onnx: a graph from uint8 images to packed codes, for any runtime of ONNX."""

import io
import json
import logging
import warnings

import torch

from llc.encode import check_out
from llc.errors import UserError
from llc.export import check, int8
from llc.export.graph import Graph, description, exported, names_of
from llc.files import atomic_write
from llc.packages import needed

LARGEST = (1 << 31) - (1 << 20)  # bytes: protobuf, in which ONNX files are written, ends at 2 GiB


def write(encoder, path, options):
    if path.suffix != ".onnx":
        raise UserError(f"--out={path}: expected a name that ends in .onnx")
    check_out(path, "--out")
    for module in ("onnx", "onnxscript", "onnxruntime"):
        needed(module, "--to=onnx", extra="onnx")
    quantize = options.quantize != "none"
    images = int8.calibration(encoder, path, options) if quantize else None
    # z is always there while the model is made and measured, and is taken away from what is written
    graph = Graph(encoder, list(dict.fromkeys((*options.outputs, "z"))))
    _check_size(graph, options)
    sample = check.for_check(encoder, options, labelled=quantize)
    model = _converted(graph, encoder)
    wanted = with_outputs(model, names_of(options.outputs))
    _write(wanted, path, options, encoder, sample)
    if graph.table_bytes:
        print(f"  {graph.table_bytes / 1e6:,.1f} MB of it are the posterior decoder's table")
    if quantize:
        int8.write(model, encoder, path, options, images, sample)


def session(data):
    """An onnxruntime session on the CPU for a file or the bytes of one."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])


def runner(running):
    """A function from images uint8 [b, 3, H, W] to {output: array}, for a session."""
    names = [output.name for output in running.get_outputs()]
    return lambda images: check.as_numpy(names, running.run(None, {"images": images.contiguous().numpy()}))


def _check_size(graph, options):
    tensors = {id(tensor): tensor for tensor in (*graph.parameters(), *graph.buffers())}
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > LARGEST:
        raise UserError(
            f"{options.run} has {size / 1e9:.2f} GB of weights and tables, and a file of ONNX ends at 2.14 "
            "GB; --to=torch has no such limit"
        )


def _converted(graph, encoder):
    """The ModelProto of a Graph, with its metadata and without what the exporter notes about sources."""
    program = exported(graph, encoder.preprocessing.resolution)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=["images"], output_names=list(graph.names)
            ).model_proto
    except Exception as error:  # of many kinds: an operator without a translation, a fault of a version
        raise UserError(
            f"torch.onnx cannot translate {encoder.network.options['arch']}: {type(error).__name__}: "
            f"{str(error).strip()[:300]}; --to=torch may do"
        ) from error
    finally:
        logging.disable(before)
    _clean(made)
    entry = made.metadata_props.add()
    about = description(encoder)
    entry.key, entry.value = "llc", json.dumps(about)
    made.producer_name, made.producer_version = "llc", about["llc"]
    return made


def _clean(model):
    """Takes out the exporter's notes, among them paths of this machine, and names the batch's dimension."""
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for function in model.functions:
        for node in (function, *function.node):
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == symbol:
                dimension.dim_param = "batch"


def with_outputs(model, names):
    """A copy of the model that gives these outputs alone, in this order."""
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    by_name = {output.name: output for output in model.graph.output}
    del copied.graph.output[:]
    copied.graph.output.extend(by_name[name] for name in names)
    return copied


def _write(model, path, options, encoder, sample):
    import onnx
    import onnxruntime

    said = []

    def verify(temporary):
        onnx.checker.check_model(temporary)
        running = session(temporary)
        if sample is not None:
            program = f"onnxruntime {onnxruntime.__version__}"
            said.append(check.compare(runner(running), encoder, options.outputs, sample, program))

    data = io.BytesIO(model.SerializeToString())
    replaced = path.exists()
    atomic_write(path, lambda file: file.write(data.getbuffer()), check=verify)
    print(describe(model, path, replaced))
    for line in said:
        print(f"  {line}")


def describe(model, path, replaced):
    """What a file holds, for people."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    lines = [
        f"{path}: opset {opset}, {path.stat().st_size / 1e6:,.1f} MB" + (", replaced" if replaced else "")
    ]
    for title, values in (("input", model.graph.input), ("output", model.graph.output)):
        lines += [f"  {title:6} {value.name} {_type(value)}" for value in values]
    return "\n".join(lines)


def _type(value):
    import onnx

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    sides = ", ".join(str(side.dim_param or side.dim_value) for side in tensor.shape.dim)
    return f"{dtype} [{sides}]"
