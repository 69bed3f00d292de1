"""The processes of a run; no other module communicates between processes.

With one process every function here does nothing or returns its input.
"""

import contextlib
import ctypes
import datetime
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from llc import environment, gpu
from llc.errors import UserError

_SECONDS_FOR_TORCHRUN = 1.0  # torchrun checks its processes ten times a second


class Processes:
    """This process and its group: rank, world_size, device.

    `start` joins the group that torchrun describes. Without torchrun there is one process.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, device: str = "cpu", control: Any = None) -> None:
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self._control = control  # a gloo group, for Python objects and numbers that are not on the device

    @classmethod
    def start(cls, timeout_minutes: float, deterministic: bool = False, backend: str = "auto") -> "Processes":
        """Joins the processes that torchrun started, and chooses this process's device.

        The device is the GPU of the local rank, or the CPU if there is no CUDA.

        timeout_minutes: how long a process waits for the others before it fails.

        deterministic: compute the same bits on CUDA each time, at some cost in speed. On a CPU results are
        the same with one thread for each process (docs/explanation/resuming.md).

        backend: auto (nccl on CUDA, else gloo), nccl or gloo. With gloo several processes can share a GPU.

        Raises UserError if there are too few GPUs, if two processes have the same one, or if torchrun has
        ended.
        """
        rank, world_size = environment.rank(), environment.world_size()
        local_rank, local_size = environment.local_rank(), environment.local_world_size()
        if deterministic:
            environment.set_default("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
            # torch warns of operations that have no deterministic algorithm
            torch.use_deterministic_algorithms(True, warn_only=True)
            # By default Inductor chooses some kernels by timing them, and processes may choose differently.
            from torch._inductor import config as inductor  # here, because few runs need it

            inductor.deterministic = True
        cuda = torch.cuda.is_available()
        backend = ("nccl" if cuda else "gloo") if backend == "auto" else backend
        if backend == "nccl" and not cuda and world_size > 1:
            raise UserError("dist.backend = nccl: torch sees no GPU here; leave it at auto")
        if cuda:
            index = gpu.choose(local_rank, local_size, shared=backend == "gloo")
            torch.cuda.set_device(index)
            torch.backends.cudnn.benchmark = not deterministic
        else:
            # torchrun sets one thread per process, but a step on a CPU needs all cores of the machine
            if not environment.threads_are_given():
                torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
            _keep_freed_memory()
        control = None
        if world_size > 1:
            _end_with_torchrun()
            _find_torchrun()
            timeout = datetime.timedelta(minutes=timeout_minutes)
            store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
            # torchrun may keep one store for all its restarts. The prefix hides what earlier processes left
            # there: without it a fast process could find their addresses and try to reach them.
            store = dist.PrefixStore(f"start_{environment.torchrun_restarts()}", store)
            if backend == "nccl":
                gpu.one_gpu_each(store, rank, world_size, index)
            dist.init_process_group(
                backend,
                store=store,
                rank=rank,
                world_size=world_size,
                timeout=timeout,
                device_id=torch.device("cuda", index) if backend == "nccl" else None,
            )
            control = dist.new_group(backend="gloo", timeout=timeout)
        return cls(rank, world_size, f"cuda:{index}" if cuda else "cpu", control)

    @property
    def is_main(self) -> bool:
        """Whether this is the process of rank 0."""
        return self.rank == 0

    def stop(self) -> None:
        """Leaves the group; called once, at the end."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def on_main(self, function: Callable[[], Any]) -> Any:
        """Calls function() on the main process; all processes get its result, or the UserError it raised."""
        if self.world_size == 1:
            return function()
        outcome: list[Any] = [None, None]  # result, error
        if self.is_main:
            try:
                outcome[0] = function()
            except UserError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=self._control)
        result, refusal = outcome
        if refusal is not None:
            raise refusal
        return result

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """A context that raises a UserError if communication fails because other processes ended or hang."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            text = str(error)
            lost = isinstance(error, dist.DistError) or any(
                sign in text for sign in ("gloo", "Connection closed by peer", "Socket Timeout")
            )
            if self.world_size == 1 or not lost:
                raise
            # torchrun shall see first that the others ended, and report them as the cause
            time.sleep(_SECONDS_FOR_TORCHRUN)
            raise UserError(
                f"process {self.rank} lost the others: one of them ended, or did not answer within "
                "dist.timeout_minutes; torchrun's report names the one that failed first "
                f"({text.splitlines()[0][:200]})"
            ) from error

    def barrier(self) -> None:
        """Waits until every process has called this."""
        if self.world_size > 1:
            dist.barrier()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums a tensor over all processes, in place, and returns it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors [n_r, ...] of all processes, in order of rank, on every process; n_r may differ."""
        if self.world_size == 1:
            return [tensor]
        if tensor.is_cuda and dist.get_backend() == "gloo":  # gloo gathers tensors on the CPU
            return [part.to(tensor.device) for part in self.gather(tensor.cpu())]
        sizes = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(tensor)], device=tensor.device))
        longest = int(max(sizes))
        padded = tensor.new_zeros((longest, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return [part[: int(size)] for part, size in zip(parts, sizes)]

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all processes, which must pickle, in order of rank, on every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Replaces each floating-point tensor by its mean over all processes, in place."""
        if self.world_size > 1:
            together = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(together)
            together /= self.world_size
            for tensor, mean in zip(tensors, together.split([tensor.numel() for tensor in tensors])):
                tensor.copy_(mean.view_as(tensor))


class Agreement:
    """Small numbers that all processes agree on at each step, without waiting for each other or the device.

    `exchange(*flags)` starts to compute the maximum of each flag over all processes, and returns the maxima
    of the step before. So every process learns of a flag at the same step, one step after it was set. A
    single process gets its flags back at once. All processes must call it equally often.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._pending: tuple[Any, torch.Tensor] | None = None

    def exchange(self, *flags: int) -> list[int]:
        """The maximum of each flag at the step before; 0 at the first. Every call passes as many flags."""
        if self._processes.world_size == 1:
            return list(flags)
        before = self._finish() or [0] * len(flags)
        highest = torch.tensor(flags, dtype=torch.int32)
        work = dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._processes._control, async_op=True)
        self._pending = work, highest
        return before

    def forget(self) -> None:
        """Drops the flags of the last step. All processes must call this, or none."""
        self._finish()

    def _finish(self):
        if self._pending is None:
            return None
        work, highest = self._pending
        self._pending = None
        work.wait()
        return highest.tolist()


def _end_with_torchrun():
    """Makes Linux send SIGTERM to this process if torchrun, its parent, dies without ending it."""
    if environment.under_torchrun():
        with contextlib.suppress(OSError, AttributeError):  # not Linux
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


def _find_torchrun():
    """Raises UserError if the torchrun that started this process has already ended.

    It may have ended before `_end_with_torchrun` was called. torchrun opens the store through which its
    processes find each other before it starts them, so a refused connection means that torchrun is gone.
    Joining the group would keep trying until the time-out.
    """
    address = environment.torchrun_store()
    if address is None:
        return
    for wait in (0.5, 1.0, 2.0, None):  # between machines a connection may be refused for a moment
        try:
            socket.create_connection(address, timeout=10).close()
            return
        except ConnectionRefusedError as error:
            if wait is None:
                raise UserError(
                    "torchrun, which started this process, has ended: "
                    f"nothing listens at {address[0]}:{address[1]}; start it again"
                ) from error
            time.sleep(wait)
        except OSError:
            return  # joining the group will say what is wrong with the network


def _keep_freed_memory():
    """Makes glibc keep the memory that this process frees, and use it for later allocations.

    A step on a CPU frees and allocates hundreds of MB. By default glibc returns them to Linux and gets them
    back page by page, and Linux clears each page first, which takes 8 to 20 % of the step's time. With this
    setting the peak of the memory used is about 20 % higher. Other C libraries are not changed.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
        mallopt(-4, 0)  # M_MMAP_MAX: no block gets its own mapping, which freeing it would remove
