"""What one optimiser step does, on any device and for any number of processes: forward, backward, gradients together, step."""
import contextlib
import inspect
import sys

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from llc.errors import UserError
from llc.training.stages import StageModule, parameter_groups


class Engine:
    """A network in one stage, with its optimiser. `step` trains it; `ema` is the average of its weights, or None.

    While `codebook_frozen`, which may change between steps, the codebook stands still, and its momentum too.

    stage, training, dist: llc.training.config.Stage, Training and Dist. On CUDA the step never waits for the device: the loss stays there,
    the learning rate is a number, and with fp16 the fused optimiser looks at the scaler's findings itself.
    """

    def __init__(self, network, stage, training, dist, processes):
        self.network, self.codebook_frozen = network, stage.is_frozen(0)
        self.accumulation_steps, self.clip_grad_norm = training.accumulation_steps, training.clip_grad_norm
        self.autocast, self.scaler = autocast_for(training.precision, processes.device)
        on_cuda = processes.device.type == "cuda"
        module = StageModule(network, stage, training.label_smoothing)
        self.optimizer = torch.optim.SGD(parameter_groups(module, training.weight_decay), lr=0.0, momentum=training.momentum,
                                         fused=on_cuda or None)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(training.ema_decay), use_buffers=True) \
            if training.ema_decay else None
        set_float32_precision(training.precision)
        self._compiled = training.compile == "on" or training.compile == "auto" and on_cuda
        if self._compiled:
            module.compile(dynamic=False)  # a graph for each resolution: shapes known beforehand make the faster kernels
        self.module, self._teacher = module, module.teacher
        if processes.world_size > 1:
            # batch norm's statistics are averaged once an epoch (the trainer does) instead of being sent at every step
            # newer releases of torch call it so
            sync = "forward_sync_buffers" if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters \
                else "broadcast_buffers"
            self.module = DistributedDataParallel(module, gradient_as_bucket_view=True, static_graph=self.accumulation_steps == 1,
                                                  device_ids=[processes.device] if on_cuda else None, **{sync: False})
            if dist.grad_compression == "bf16":
                self.module.register_comm_hook(None, bf16_compress_hook)
        self._settled = processes.world_size <= 2
        self.module.train()

    def step(self, images, labels, lr):
        """images uint8 [B, 3, H, W], labels int64 [B] of this process -> its mean loss, a scalar tensor on the device.

        B is a multiple of accumulation_steps: the gradient is the mean over the parts, batch norm sees a part at a time.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        total = 0.0
        parts = list(zip(images.chunk(self.accumulation_steps), labels.chunk(self.accumulation_steps)))
        if not self._settled:
            self._settle(*parts[0])
        for number, part in enumerate(parts, start=1):
            with self._gradients_stay_here() if number < len(parts) else contextlib.nullcontext():
                loss = self._loss(*part) / len(parts)
                self.scaler.scale(loss).backward()
            total = total + loss.detach()
        if self.codebook_frozen:
            self.network.codebook.grad = None  # which the optimiser passes over; a rate of 0 would still add to its momentum
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        return total

    def _settle(self, images, labels):
        """Two passes that change nothing. After its first backward pass, with static_graph its second, DDP arranges the gradients in its
        buckets anew; with three or more processes the place of a gradient there decides in which order they add it up. Without this the
        first steps after a start would be rounded otherwise than the same steps of a run that was not stopped before them.
        """
        buffers = list(self.network.buffers())
        before = [buffer.clone() for buffer in buffers]
        for _ in range(2):
            self._loss(images, labels).backward()
            self.optimizer.zero_grad(set_to_none=True)
        for buffer, value in zip(buffers, before):
            buffer.copy_(value)
        self._settled = True

    def _loss(self, images, labels):
        if not self._compiled:
            with self.autocast():
                return self.module(images, labels)
        try:
            with self.autocast():
                return self.module(images, labels)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            print(f"warning: torch.compile failed and is left out ({reason}); training.compile=off says so from the start",
                  file=sys.stderr, flush=True)
            self._compiled = False
            torch.compiler.set_stance("force_eager")
            return self._loss(images, labels)

    def _gradients_stay_here(self):
        return self.module.no_sync() if isinstance(self.module, DistributedDataParallel) else contextlib.nullcontext()

    def state_dict(self):
        """Everything beside the network that the next step depends on."""
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        if self._teacher is not None:
            state["teacher"] = self._teacher.state_dict()
        return state

    def load_state_dict(self, state):
        """Raises UserError where the state is of an engine without what this one has."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for name, module, key in (("ema", self.ema, "training.ema_decay"), ("teacher", self._teacher, "instance.distillation")):
            if module is None:
                continue
            if name not in state:
                raise UserError(f"{key} was 0 when the checkpoint's stage began, and what it needs is not in the checkpoint; continue with 0")
            module.load_state_dict(state[name])


def set_float32_precision(precision):
    """For this process: products of float32 are exact to float32, except with precision tf32."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def autocast_for(precision, device):
    """(context factory, gradient scaler) of a precision: auto, bf16, fp16, tf32 or fp32, on a device.

    auto: on CUDA bf16, where the GPU has it, else fp16; on a CPU fp32.
    """
    if precision == "auto":
        precision = "fp32" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)

    def autocast():
        return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)

    return autocast, torch.amp.GradScaler(device.type, enabled=precision == "fp16" and device.type == "cuda")
