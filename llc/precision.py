"""The precision in which a network computes: autocast, gradient scaling, and float32 or TF32 products."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

PRECISIONS = ("auto", "bf16", "fp16", "tf32", "fp32")


@contextlib.contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """A context in which float32 products and convolutions use float32, or TF32 if precision is tf32.

    PyTorch's default is TF32 for convolutions on CUDA. The setting applies to all threads of the process, and
    is restored at the end.
    """
    matmul: Any = torch.backends.cuda.matmul
    convolution: Any = torch.backends.cudnn
    try:
        before = torch.get_float32_matmul_precision(), matmul.allow_tf32, convolution.allow_tf32
    except RuntimeError:  # PyTorch refuses to read these once its newer names for them were used
        before = None
        newer = matmul.fp32_precision, convolution.conv.fp32_precision, convolution.rnn.fp32_precision
    _set(precision)
    try:
        yield
    finally:
        if before is not None:
            torch.set_float32_matmul_precision(before[0])
            convolution.allow_tf32 = before[2]
        else:
            matmul.fp32_precision, convolution.conv.fp32_precision, convolution.rnn.fp32_precision = newer


def _set(precision: str) -> None:
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def autocast_for(
    precision: str, device: torch.device
) -> tuple[Callable[[], AbstractContextManager[None]], torch.amp.GradScaler]:
    """(a function that makes a context, a gradient scaler) for a precision on a device.

    precision: auto, bf16, fp16, tf32 or fp32. auto is bf16 on GPUs that have it, fp16 on other GPUs, and fp32
    on a CPU. The context includes float32_precision. The scaler is enabled only for fp16 on CUDA.
    """
    if precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "fp32" if device.type == "cpu" else "bf16" if bf16 else "fp16"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)

    @contextlib.contextmanager
    def autocast():
        with (
            float32_precision(precision),
            torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
        ):
            yield

    return autocast, torch.amp.GradScaler(device.type, enabled=precision == "fp16" and device.type == "cuda")
