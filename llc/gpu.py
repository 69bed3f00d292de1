"""The choice of a GPU, and errors of a machine's GPUs that say what to do."""

import socket

import torch

from llc.errors import UserError


def choose(local_rank: int, local_size: int, shared: bool = False) -> int:
    """The index of the GPU that process `local_rank` of the `local_size` on this machine uses.

    If torch sees a single GPU, every process takes it, because a cluster may show each process only its own
    GPU. `one_gpu_each` detects processes that have the same one. shared: processes may share GPUs. Raises
    UserError if there are too few GPUs.
    """
    count = torch.cuda.device_count()
    if local_rank < count or count == 1 or shared:
        return local_rank % count
    raise UserError(
        f"{local_size} processes were started on this machine, but torch sees {count} GPUs: "
        f"start one process per GPU (torchrun --nproc_per_node={count}), or check CUDA_VISIBLE_DEVICES"
    )


def device(name: str) -> torch.device:
    """The torch.device that a user named: cpu, cuda or cuda:N. Raises UserError if this machine lacks it."""
    named: torch.device | None
    try:
        named = torch.device(name)
    except RuntimeError:
        named = None
    if named is None or named.type not in ("cpu", "cuda"):
        raise UserError(f"device {name}: expected cpu, cuda, or cuda:N for GPU number N, from 0")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if named.type == "cuda" and (named.index or 0) >= count:
        raise UserError(
            f"device {name}: torch sees {count or 'no'} GPU{'s' * (count != 1)} on this machine"
            + ("" if count else "; use cpu")
        )
    return named


def one_gpu_each(store: torch.distributed.Store, rank: int, world_size: int, device: int) -> None:
    """Raises UserError on all processes if two of them have the same GPU. NCCL's own message names neither.

    store: shared by all processes, all of which must call this. device: the index of this process's GPU.
    """
    properties = torch.cuda.get_device_properties(device)
    store.set(f"gpu_{rank}", f"{getattr(properties, 'uuid', rank)} of {socket.gethostname()}")
    rank_of: dict[str, int] = {}  # GPU -> the process that has it
    for other in range(world_size):
        gpu = store.get(f"gpu_{other}").decode()
        if gpu in rank_of:
            raise UserError(
                f"processes {rank_of[gpu]} and {other} have the same GPU, {gpu} ({properties.name}): "
                "start one process per GPU (torchrun --nproc_per_node), or let processes share GPUs, "
                "which is slow, with --dist.backend=gloo"
            )
        rank_of[gpu] = other


# The messages of CUDA, if other programs fill the GPU; of cuDNN, if no algorithm has enough memory; of
# cuBLAS.
_SIGNS_OF_FULL_MEMORY = (
    "CUDA error: out of memory",
    "unable to find an engine to execute this computation",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a GPU has no memory left."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or isinstance(error, RuntimeError)
        and any(sign in str(error) for sign in _SIGNS_OF_FULL_MEMORY)
    )


def memory_error(error: BaseException) -> UserError:
    """The UserError for an error that `is_out_of_memory`: who holds the GPU's memory, and what to do."""
    try:
        device = torch.cuda.current_device()
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)
        held = (
            f"of the {total / 1e9:.1f} GB of cuda:{device} this process holds {own / 1e9:.1f} GB "
            f"and other programs (with CUDA's own needs) {(total - free - own) / 1e9:.1f} GB"
        )
    except (RuntimeError, AssertionError):  # the GPU is so full that even these calls fail
        held = "other programs may hold all of it"
    return UserError(
        f"the GPU's memory is full: {held}. Use smaller batches (training.batch_size, "
        "training.accumulation_steps, validation.batch_size, --batch_size) or end the other programs "
        "(nvidia-smi lists them). "
        f"{str(error).splitlines()[0][:200]}"
    )
