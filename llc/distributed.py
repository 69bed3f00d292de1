"""Processes: the one module that knows there may be several. With one process every function here does nothing or returns its input."""

import contextlib
import ctypes
import datetime
import os
import signal
import socket
import time

import torch
import torch.distributed as dist

from llc import gpu
from llc.errors import UserError

_SECONDS_FOR_TORCHRUN = 1.0  # it looks at its processes ten times a second


class Processes:
    """This process among all: rank, world_size, device. `start` joins the group that torchrun describes; plain python: one process."""

    def __init__(self, rank=0, world_size=1, device="cpu", control=None):
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self._control = control  # a gloo group, for what the hosts tell each other without their devices

    @classmethod
    def start(cls, timeout_minutes, deterministic=False, backend="auto"):
        """Reads torchrun's environment, picks the device (CUDA by local rank, else CPU) and joins.

        deterministic: the same bits on CUDA each time, for some speed; on a CPU they are anyway, for the same number of threads.
        backend: auto (NCCL on CUDA, else gloo), nccl or gloo; with gloo several processes can share a GPU.
        Raises UserError when there are too few GPUs.
        """
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local_rank, local_size = (
            int(os.environ.get("LOCAL_RANK", 0)),
            int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        )
        if deterministic:
            os.environ.setdefault(
                "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
            )  # cuBLAS asks for this, before it is first used
            torch.use_deterministic_algorithms(
                True, warn_only=True
            )  # a warning names an operation that has no such algorithm
            # By default Inductor times some of its choices, and another process may choose differently.
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
            # torchrun sets one thread a process; on a CPU the step needs all cores, shared among the processes here
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
            _keep_freed_memory()
        control = None
        if world_size > 1:
            _end_with_torchrun()
            _find_torchrun()
            timeout = datetime.timedelta(minutes=timeout_minutes)
            store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
            # torchrun may keep one store for all its --max-restarts, and what an earlier start left there must not be found: the addresses
            # of processes that are gone, which a process quicker than the others would try to reach
            store = dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
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
    def is_main(self):
        return self.rank == 0

    def stop(self):
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def on_main(self, function):
        """The result of function() on the main process, on every process; a UserError that it raises is raised on every process."""
        if self.world_size == 1:
            return function()
        told = [None, None]
        if self.is_main:
            try:
                told[0] = function()
            except UserError as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0, group=self._control)
        if told[1] is not None:
            raise told[1]
        return told[0]

    @contextlib.contextmanager
    def watched(self):
        """What fails in here because other processes are gone, or did not answer in time, raises a UserError."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            text = str(error)
            lost = isinstance(error, dist.DistError) or any(
                sign in text for sign in ("gloo", "Connection closed by peer", "Socket Timeout")
            )
            if self.world_size == 1 or not lost:
                raise
            # so that torchrun sees the others' end before this process's own, and reports theirs as the cause
            time.sleep(_SECONDS_FOR_TORCHRUN)
            raise UserError(
                f"process {self.rank} lost the others: one of them ended, or did not answer within dist.timeout_minutes; torchrun's report "
                f"names the one that failed first ({text.splitlines()[0][:200]})"
            ) from error

    def barrier(self):
        if self.world_size > 1:
            dist.barrier()

    def sum(self, tensor):
        """Sums a tensor over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor):
        """Tensors [n_r, ...] of all processes, n_r may differ, as a list in the order of ranks, on every process."""
        if self.world_size == 1:
            return [tensor]
        if tensor.is_cuda and dist.get_backend() == "gloo":  # which gathers on the host
            return [part.to(tensor.device) for part in self.gather(tensor.cpu())]
        sizes = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(tensor)], device=tensor.device))
        longest = int(max(sizes))
        padded = tensor.new_zeros((longest, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return [part[: int(size)] for part, size in zip(parts, sizes)]

    def gather_objects(self, value):
        """Values of all processes, of any kind that pickles, as a list in the order of ranks, on every process."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def average(self, tensors):
        """Replaces floating tensors by their means over the processes, in place."""
        if self.world_size > 1:
            together = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(together)
            together /= self.world_size
            for tensor, mean in zip(tensors, together.split([tensor.numel() for tensor in tensors])):
                tensor.copy_(mean.view_as(tensor))


class Agreement:
    """Small numbers that all processes agree on, step after step, without waiting for each other or for the device.

    `exchange(*flags)` starts adding up this step's flags (the highest of all processes counts) and returns those of the step before, so
    every process learns of a flag at the same step, one after it was raised. With one process there is nothing to wait for: its flags
    come back at once. All processes must call it equally often.
    """

    def __init__(self, processes):
        self._processes, self._pending = processes, None

    def exchange(self, *flags):
        """ints, as many at each call -> list of ints."""
        if self._processes.world_size == 1:
            return list(flags)
        before = self._finish() or [0] * len(flags)
        highest = torch.tensor(flags, dtype=torch.int32)
        work = dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._processes._control, async_op=True)
        self._pending = work, highest
        return before

    def forget(self):
        """Drops what was raised at the last step; on all processes, or on none."""
        self._finish()

    def _finish(self):
        if self._pending is None:
            return None
        work, highest = self._pending
        self._pending = None
        work.wait()
        return highest.tolist()


def _end_with_torchrun():
    """Has Linux send SIGTERM to this process when torchrun, its parent, dies without ending it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with contextlib.suppress(OSError, AttributeError):  # not Linux
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


def _find_torchrun():
    """Raises UserError where the torchrun that started this process ended before `_end_with_torchrun` tied them together.

    It holds the store in which its processes meet, and had opened it before it started them: a refusal means that it is gone. Joining
    would go on asking for all of the time-out.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    for wait in (0.5, 1.0, 2.0, None):  # what stands between machines may refuse for a moment
        try:
            socket.create_connection(address, timeout=10).close()
            return
        except ConnectionRefusedError as error:
            if wait is None:
                raise UserError(
                    f"torchrun, which started this process, has ended: nothing listens at {address[0]}:{address[1]}; "
                    "start it again"
                ) from error
            time.sleep(wait)
        except OSError:
            return  # joining says what is wrong with the network


def _keep_freed_memory():
    """Has glibc keep what this process frees for what it allocates next.

    A step on a CPU frees and allocates hundreds of MB, which glibc by its defaults gives back to Linux and gets again page by page, each
    cleared first: 8 to 20 % of the step's time. The price is some 20 % more memory at the peak. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
        mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own, which freeing would end
