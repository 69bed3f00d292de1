"""The precision in which a network computes: autocast, gradient scaling, and float32 or TF32 products."""

import contextlib

import torch

PRECISIONS = ("auto", "bf16", "fp16", "tf32", "fp32")


@contextlib.contextmanager
def float32_precision(precision):
    """A context in which float32 products and convolutions use float32, or TF32 if precision is tf32.

    PyTorch's default is TF32 for convolutions on CUDA. The setting is the whole process's, not the thread's.
    It is restored at the end.
    """
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        before = torch.get_float32_matmul_precision(), matmul.allow_tf32, convolution.allow_tf32
    except RuntimeError:  # these cannot be read where PyTorch's newer names for the same settings were used
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


def _set(precision):
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def autocast_for(precision, device):
    """(context factory, gradient scaler) of a precision: auto, bf16, fp16, tf32 or fp32, on a device.

    auto: on CUDA bf16 if the GPU has it, else fp16; on a CPU fp32. The context includes float32_precision.
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
