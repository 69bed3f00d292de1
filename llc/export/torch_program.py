"""--to=torch: a program of torch.export, which runs wherever torch does."""

import io
import json
import warnings

import torch

from llc.encode import check_out
from llc.errors import UserError
from llc.export import check
from llc.export.graph import Graph, description, exported
from llc.files import atomic_write


def write(encoder, path, options):
    if path.suffix != ".pt2":
        raise UserError(f"--out={path}: expected a name that ends in .pt2")
    check_out(path, "--out")
    graph = Graph(encoder, options.outputs)
    sample = check.for_check(encoder, options)
    program = exported(graph, encoder.preprocessing.resolution)
    said = []

    def verify(temporary):
        with open(temporary, "rb") as file:
            module = torch.export.load(file).module()
        if sample is not None:
            said.append(
                check.compare(
                    lambda images: check.as_numpy(graph.names, module(images)),
                    encoder,
                    options.outputs,
                    sample,
                    f"torch {torch.__version__}",
                )
            )

    data = io.BytesIO()  # because torch would report a full disk in its own way
    with warnings.catch_warnings():  # of weights that share memory, which these do not
        warnings.simplefilter("ignore")
        torch.export.save(program, data, extra_files={"llc.json": json.dumps(description(encoder))})
    replaced = path.exists()
    atomic_write(path, lambda file: file.write(data.getbuffer()), check=verify)
    side = encoder.preprocessing.resolution
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB" + (", replaced" if replaced else ""))
    print(f"  input  images uint8 [batch, 3, {side}, {side}]")
    with torch.no_grad():
        made = graph(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    for name, tensor in zip(graph.names, made):
        shape = ", ".join(["batch", *map(str, tensor.shape[1:])])
        print(f"  output {name} {str(tensor.dtype).removeprefix('torch.')} [{shape}]")
    if graph.table_bytes:
        print(f"  {graph.table_bytes / 1e6:,.1f} MB of it are the posterior decoder's table")
    for line in said:
        print(f"  {line}")
