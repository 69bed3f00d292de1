"""The state of a run: where it stands, and what last.pth holds of it.

A run can be stopped at any step and resumed, because everything that its next step depends on is here:
`Progress`, the network, the engine, and for each process batch norm's running statistics and the sum of its
losses. Batches, learning rates and resolutions are functions of the position alone.
"""

import dataclasses

import torch

from llc import checkpoints
from llc.errors import UserError
from llc.network import running_statistics
from llc.progress import say
from llc.text import counted
from llc.training import resume
from llc.training.recovery import NonFinite
from llc.training.start import after_dense, build_network

_WHERE = "checkpoints/last.pth"
_DAMAGED = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    IndexError,
)  # of a file of other content


@dataclasses.dataclass
class Progress:
    """Where a run stands, in plain values."""

    stage: int = 0  # index into config.stages
    epoch: int = 0  # finished epochs of the stage
    batch: int = 0  # finished batches of the epoch; if all are, only validation is left
    global_epoch: int = 0  # finished epochs of all stages
    best: float = -1.0  # the stage's best_metric in its best epoch
    best_metrics: dict = dataclasses.field(default_factory=dict)
    finals: dict = dataclasses.field(default_factory=dict)  # stage name -> final metrics
    bests: dict = dataclasses.field(default_factory=dict)  # stage name -> metrics of its best epoch
    lines: list = dataclasses.field(default_factory=list)  # of log.jsonl
    num_non_finite: int = 0  # how often the run returned to last.pth after a NaN or infinite loss
    left_out: list = dataclasses.field(
        default_factory=list
    )  # the batches skipped then: [global epoch, batch]

    @classmethod
    def of(cls, state, num_stages):
        """From a checkpoint, which may hold anything. Raises KeyError, TypeError or ValueError."""
        progress = cls(**state["progress"])
        for field in dataclasses.fields(cls):
            value = getattr(progress, field.name)
            if type(value) is not field.type or field.type is int and not 0 <= value < 1 << 40:
                raise ValueError(f"progress.{field.name} is {value!r:.60}")
        lines_are_dicts = all(type(line) is dict for line in progress.lines)
        if progress.stage > num_stages or len(progress.finals) < progress.stage or not lines_are_dicts:
            raise ValueError("its progress contradicts itself")
        return progress

    def end_epoch(self):
        self.epoch, self.batch, self.global_epoch = self.epoch + 1, 0, self.global_epoch + 1

    def end_stage(self):
        self.stage, self.epoch, self.batch = self.stage + 1, 0, 0
        self.best, self.best_metrics = -1.0, {}


class RunState:
    """Progress, network and loss sum of a run, with what of a checkpoint waits for the engine of its stage.

    network: of the stage that runs. classifier: the dense layer that fits its backbone as the stage begins,
    (weight, bias), or None. loss_sum: of the epoch's batches so far, of this process, a scalar tensor on the
    device.
    """

    def __init__(self, config, parts, processes):
        self._config, self._parts, self._processes = config, parts, processes
        self.network, self.classifier, self.progress = parts.network, parts.classifier, Progress()
        self.loss_sum = torch.zeros((), device=processes.device)
        self._checkpoint = None

    @property
    def resumed(self):
        """Whether a checkpoint was restored whose engine has not been yet."""
        return self._checkpoint is not None

    @property
    def within_stage(self):
        """Whether it is one from within a stage, whose codebook was frozen as it had to be."""
        return self.resumed and self._checkpoint["engine"] is not None

    def as_dict(self, engine):
        """What last.pth holds. engine: None between stages. All processes must call it at the same step.

        Raises NonFinite on all of them if a sum of losses is NaN or infinite.
        """
        own = [*running_statistics(*networks(engine, self.network)), self.loss_sum]
        of_process = torch.stack(self._processes.gather(torch.cat([tensor.flatten() for tensor in own])))
        if not torch.isfinite(of_process[:, -1]).all():
            raise NonFinite
        return {
            "identity": self._parts.identity,
            "progress": dataclasses.asdict(self.progress),
            "network": self.network.state_dict(),
            "engine": engine and engine.state_dict(),
            # later it is in the teacher, which is part of the engine
            "classifier": None if engine else self.classifier,
            "of_process": of_process,
        }

    def restore(self, checkpoint, anyway=True):
        """Takes over a checkpoint except for the engine, which `restore_engine` does once it exists.

        anyway: even if resume.check finds differences. Raises UserError.
        """
        try:
            # on the main process alone, because other machines may have shards of their own
            differences = self._processes.on_main(
                lambda: resume.check(checkpoint["identity"], self._parts.identity, _WHERE, anyway)
            )
            for difference in differences:
                say(f"warning: {_WHERE} is of a run that differs: {difference}", self._processes)
            if self._parts.identity["init_codebook"] is None:  # it cannot be made again, only remembered
                self._parts.identity["init_codebook"] = checkpoint["identity"]["init_codebook"]
            self.progress = Progress.of(checkpoint, len(self._config.stages))
            self._restore_network(checkpoint)
        except _DAMAGED as error:
            raise UserError(f"{_WHERE} does not hold the state of a run: {_short(error)}") from error
        self.progress.batch = min(self.progress.batch, self._parts.steps)
        self._checkpoint = checkpoint

    def _restore_network(self, checkpoint):
        config, num_classes = self._config, self._parts.num_classes
        stage = min(self.progress.stage, len(config.stages) - 1)
        if self.network.options != config.network_options(num_classes, config.stages[stage]):
            network = build_network(config, num_classes, config.stages[stage])
            self.network = network.to(self._processes.device, memory_format=torch.channels_last)
        checkpoints.fit(self.network, checkpoint["network"], _WHERE)
        self.classifier = checkpoint.get("classifier")
        if self.classifier is None and self.progress.stage == config.stage_from_classifier:
            zeros = torch.zeros(num_classes, self.network.num_features)
            self.classifier = zeros, zeros[:, 0]  # the teacher's values come with the engine

    def end_stage(self, stage):
        """Goes on to the next stage, and makes its network if the one that ends, `stage`, was dense."""
        self.progress.end_stage()
        self.loss_sum.zero_()
        self.classifier = None
        if stage.dense and self.progress.stage < len(self._config.stages):
            self.network, self.classifier = after_dense(self._config, self.network, self._processes)

    def restore_engine(self, engine):
        """Restores the engine, and this process's statistics and loss sum. Raises UserError."""
        checkpoint, self._checkpoint = self._checkpoint, None
        saved = checkpoint["engine"]
        own = [*running_statistics(*networks(engine if saved else None, self.network)), self.loss_sum]
        try:
            if saved:
                engine.load_state_dict(saved)
            of_process = checkpoint["of_process"]
            if len(of_process) == self._processes.world_size:
                values = of_process[self._processes.rank]
            else:
                values = of_process.mean(0)
                say(
                    f"warning: {counted(len(of_process), 'process', 'processes')} at work before, now "
                    f"{self._processes.world_size}: each resumes from the mean of their running statistics "
                    "of batch norm, so the result will differ as between two runs",
                    self._processes,
                )
            for tensor, value in zip(own, values.split([tensor.numel() for tensor in own]), strict=True):
                tensor.copy_(value.view_as(tensor))
        except _DAMAGED as error:
            raise UserError(
                f"{_WHERE} does not hold the state of this run's optimiser and processes: {_short(error)}"
            ) from error


def networks(engine, network=None):
    """The networks whose running statistics differ between processes: the trained one and its average."""
    if engine is None:
        return [network]
    return [engine.network] + ([engine.ema.module] if engine.ema is not None else [])


def _short(error):
    return f"{type(error).__name__}: {str(error).splitlines()[0]}"
