"""One optimiser step on any device and any number of processes: forward, backward, all-reduce, step."""

import contextlib
import inspect
import sys
import warnings

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from llc.errors import UserError
from llc.precision import autocast_for, float32_precision
from llc.training.ema import AveragedNetwork
from llc.training.optimizer import make_sgd, parameter_groups, with_rate
from llc.training.stage_module import StageModule


class Engine:
    """A network in one stage, with its optimiser.

    `step` trains it; `ema` is the moving average of its weights, or None.

    While `codebook_frozen`, which may change between steps, the codebook and its momentum do not change.

    stage: llc.stages.Stage; training, dist: llc.recipe.Training and Dist. num_resolutions: how many
    resolutions the stage's images will have, because a graph is compiled for each. classifier, prefixes: of
    StageModule. On CUDA the step never waits for the device: the loss stays there, the learning rate is a
    number, and with fp16 the fused optimiser reads the scaler's overflow flag on the device.
    """

    def __init__(
        self, network, stage, training, dist, processes, num_resolutions=1, classifier=None, prefixes=()
    ):
        self.network, self.codebook_frozen = network, stage.is_frozen(0)
        self.accumulation_steps, self.clip_grad_norm = training.accumulation_steps, training.clip_grad_norm
        self._precision = training.precision
        self.autocast, self.scaler = autocast_for(training.precision, processes.device)
        on_cuda = processes.device.type == "cuda"
        module = StageModule(network, stage, training.label_smoothing, classifier, prefixes)
        groups = parameter_groups(module, training.weight_decay)
        if stage.backbone_lr != 1:
            groups = with_rate(groups, network.backbone.parameters(), stage.backbone_lr)
        self.optimizer = make_sgd(groups, training.momentum, fused=on_cuda)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.ema = AveragedNetwork(network, training.ema_decay) if training.ema_decay else None
        self._teacher, self._compiled = module.teacher, None
        if training.compile == "on" or training.compile == "auto" and on_cuda:
            self._compiled = module = _Compiled(module, num_resolutions)
        self.module = module
        if processes.world_size > 1:
            # The trainer averages batch norm's statistics once per epoch, so DDP need not send them at every
            # step. Newer releases of torch have renamed the argument for that.
            sync = (
                "forward_sync_buffers"
                if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
                else "broadcast_buffers"
            )
            self.module = DistributedDataParallel(
                module,
                gradient_as_bucket_view=True,
                static_graph=self.accumulation_steps == 1,
                device_ids=[processes.device] if on_cuda else None,
                **{sync: False},
            )
            if dist.grad_compression == "bf16":
                self.module.register_comm_hook(None, bf16_compress_hook)
        self._buckets_are_final = processes.world_size <= 2
        self.module.train()

    @property
    def compiled(self):
        """Whether the steps run compiled: asked for, and the compiler has not failed."""
        return self._compiled is not None and not self._compiled.failed

    @property
    def compiler_failed(self):
        """Whether steps that should be compiled run eagerly, because the compiler failed in some process."""
        return self._compiled is not None and self._compiled.failed

    def run_eagerly(self):
        """Stops using compiled steps, because another process could not compile and sets the pace."""
        if self.compiled:
            self._compiled.failed = True
            print(
                "warning: torch.compile failed in another process; this one trains without it too",
                file=sys.stderr,
                flush=True,
            )

    def step(self, images, labels, lr, epoch=0.0):
        """Trains on a batch of this process; returns its mean loss, a scalar tensor on the device.

        images uint8 [B, 3, H, W], labels int64 [B]; epoch: finished epochs of the stage, with a fraction.
        B is a multiple of accumulation_steps: the gradient is the mean over the parts, and batch norm sees
        one part at a time.
        """
        with float32_precision(self._precision):  # the backward pass, too
            return self._step(images, labels, lr, epoch)

    def _step(self, images, labels, lr, epoch):
        # A tensor, because a number would be part of the compiled graph.
        epoch = torch.full((), epoch, dtype=torch.float32, device=images.device)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("rate", 1)
        total = 0.0
        parts = list(zip(images.chunk(self.accumulation_steps), labels.chunk(self.accumulation_steps)))
        if not self._buckets_are_final:
            self._finalise_buckets(*parts[0], epoch)
        for number, part in enumerate(parts, start=1):
            with self._without_all_reduce() if number < len(parts) else contextlib.nullcontext():
                loss = self._loss(*part, epoch) / len(parts)
                self.scaler.scale(loss).backward()
            total = total + loss.detach()
        if self.codebook_frozen:
            # The optimiser skips a parameter without gradient; a rate of 0 would still change its momentum.
            self.network.codebook.grad = None
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        return total

    def _finalise_buckets(self, images, labels, epoch):
        """Two throw-away backward passes, after which DDP no longer rearranges the gradients in its buckets.

        DDP rebuilds its buckets after the first backward pass, or with static_graph after the second. With
        three or more processes a gradient's place in them decides the order of summation. Without this, the
        first steps of a resumed run would be rounded differently from the same steps of a run that was not
        stopped.
        """
        buffers = list(self.network.buffers())
        before = [buffer.clone() for buffer in buffers]
        for _ in range(2):
            self._loss(images, labels, epoch).backward()
            self.optimizer.zero_grad(set_to_none=True)
        for buffer, value in zip(buffers, before):
            buffer.copy_(value)
        self._buckets_are_final = True

    def _loss(self, images, labels, epoch):
        with self.autocast():
            return self.module(images, labels, epoch)

    def _without_all_reduce(self):
        return (
            self.module.no_sync()
            if isinstance(self.module, DistributedDataParallel)
            else contextlib.nullcontext()
        )

    def state_dict(self):
        """Everything beside the network that the next step depends on."""
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        if self._teacher is not None:
            state["teacher"] = self._teacher.state_dict()
        return state

    def load_state_dict(self, state):
        """Raises UserError if only one of the two has a moving average, or if the state lacks a teacher."""
        if self.ema is None and "ema" in state:
            raise UserError(
                "training.ema_decay was above 0 when the checkpoint's stage began; resume with that value"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for name, module, key in (
            ("ema", self.ema, "training.ema_decay"),
            ("teacher", self._teacher, "instance.distillation"),
        ):
            if module is None:
                continue
            if name not in state:
                raise UserError(
                    f"{key} was 0 when the checkpoint's stage began, so the checkpoint lacks the weights "
                    "that it needs; resume with 0"
                )
            module.load_state_dict(state[name])


class _Compiled(nn.Module):
    """A stage's module under torch.compile, which runs eagerly after the compiler's first failure.

    `forward` catches the failure, so that DDP, which wraps this, sees one forward pass per backward pass.
    """

    def __init__(self, module, num_graphs):
        super().__init__()
        self.module, self.failed = module, False
        # By default the backward pass is compiled when it first runs, where `forward` cannot catch a failure.
        with contextlib.suppress(AttributeError):  # a private setting; torch 2.11 and 2.14 have it
            torch._functorch.config.force_non_lazy_backward_lowering = True
        # Dynamo counts the graphs of all stages together. Beyond its limit, 8, it silently runs eagerly.
        torch._dynamo.config.recompile_limit += num_graphs
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        # Inductor advises TF32 whenever a graph has a float32 product; training.precision=tf32 is for that.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        module.compile(dynamic=False)  # a graph for each resolution: kernels for known shapes are faster

    def forward(self, images, labels, epoch):
        if not self.failed:
            dynamo = torch._dynamo.exc
            try:
                return self.module(images, labels, epoch)
            except (dynamo.TorchDynamoException, dynamo.FailOnRecompileLimitHit) as error:
                print(
                    f"warning: torch.compile failed ({_reason(error)}); training continues without it. "
                    "Set training.compile=off to skip the attempt",
                    file=sys.stderr,
                    flush=True,
                )
                self.failed = True
        with torch.compiler.set_stance("force_eager"):
            return self.module(images, labels, epoch)


def _reason(error):
    """The first two lines of a compiler's error; the first often names the backend alone."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:400] or type(error).__name__
