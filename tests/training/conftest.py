"""A compiler that is quick, for tests of what is compiled and of what happens when that fails."""

import pytest
import torch
import torch._inductor.compile_fx
from torch._functorch.aot_autograd import make_boxed_func


@pytest.fixture
def quick_compiler(monkeypatch):
    """start(fail) -> a list; makes torch.compile run its graphs without generating code.

    The list will hold, for each graph, whether it is of a backward pass. fail(backward) may raise in a graph.
    """
    compile_fx, graphs = torch._inductor.compile_fx.compile_fx, []

    def start(fail=lambda backward: None):
        def run_graph(graph, inputs, **options):
            backward = bool(options.get("is_backward"))
            fail(backward)
            graphs.append(backward)
            return make_boxed_func(graph.forward)

        monkeypatch.setattr(
            "torch._inductor.compile_fx.compile_fx",
            lambda model, inputs, inner_compile=None, **options: compile_fx(
                model, inputs, run_graph, **options
            ),
        )
        return graphs

    torch.compiler.reset()  # or what an earlier test compiled would serve
    with torch._dynamo.config.patch(recompile_limit=8):
        yield start
