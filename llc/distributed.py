"""Processes: the one module that knows there may be several. With one process every function here does nothing or returns its input."""
import datetime
import os

import torch
import torch.distributed as dist


class Processes:
    """This process among all: rank, world_size, device. `start` joins the group that torchrun describes; plain python: one process."""

    def __init__(self, rank=0, world_size=1, device="cpu"):
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)

    @classmethod
    def start(cls, timeout_minutes):
        """Reads torchrun's environment, picks the device (CUDA by local rank, else CPU) and joins (NCCL or gloo)."""
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(local_rank)
            torch.backends.cudnn.benchmark = True
        else:
            # torchrun sets one thread a process; on a CPU the step needs all cores, shared among the processes here
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
        if world_size > 1:
            dist.init_process_group("nccl" if cuda else "gloo", timeout=datetime.timedelta(minutes=timeout_minutes))
        return cls(rank, world_size, f"cuda:{local_rank}" if cuda else "cpu")

    @property
    def is_main(self):
        return self.rank == 0

    def stop(self):
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

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
        sizes = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(tensor)], device=tensor.device))
        longest = int(max(sizes))
        padded = tensor.new_zeros((longest, *tensor.shape[1:]))
        padded[:len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return [part[:int(size)] for part, size in zip(parts, sizes)]

    def average_buffers(self, module):
        """Replaces floating buffers (batch norm's running statistics) by their mean over the processes."""
        if self.world_size > 1:
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.world_size
