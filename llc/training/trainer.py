"""Runs the stages: batch, loss, backward, step; after each epoch validation, the log line, the checkpoint.

A run can be stopped at any step and continued: its whole state is `Progress`, the network, the engine, and of each process batch norm's
running statistics and the sum of its losses. Batches, learning rates and resolutions are functions of the position.
"""

import dataclasses
import math
import time
from pathlib import Path

import torch
from tqdm import tqdm

from llc.checkpoints import load_weights
from llc.codebook import health, load_codebook, move_apart, random_codebook
from llc.data.loaders import TrainLoader, ValLoader
from llc.data.manifest import check_same_classes
from llc.data.shards import open_shards
from llc.distributed import Agreement
from llc.errors import UserError
from llc.evaluation import metrics as metric_table
from llc.evaluation.decoders import DECODERS
from llc.evaluation.predict import predict
from llc.kernels.cuda_launch import check_launch
from llc.network import Network, running_statistics
from llc.precision import autocast_for
from llc.training import resume
from llc.training.engine import Engine
from llc.training.interruption import BackgroundWriter, LossWatch, Stopped, StopSignals, snapshot
from llc.training.schedules import learning_rate, stage_resolution

LOSS_SECONDS = 2.0  # the bar shows a new loss this often: each time the host waits once for the device


@dataclasses.dataclass
class Progress:
    """Where a run stands: all of its state beside the network's, the engine's and the single processes'."""

    stage: int = 0  # index into config.stages
    epoch: int = 0  # finished epochs of it
    batch: int = 0  # finished batches of the epoch; all of them: what is left of it is validation
    global_epoch: int = 0  # finished epochs of all stages
    best: float = -1.0  # headline of the stage's best epoch
    best_metrics: dict = dataclasses.field(default_factory=dict)
    finals: dict = dataclasses.field(default_factory=dict)  # stage name -> final metrics
    bests: dict = dataclasses.field(default_factory=dict)  # stage name -> metrics of its best epoch
    lines: list = dataclasses.field(default_factory=list)  # of log.jsonl
    num_non_finite: int = 0  # times that the run went back to before a loss that was no number
    left_out: list = dataclasses.field(
        default_factory=list
    )  # batches left out for that, [global epoch, batch]

    @classmethod
    def of(cls, state, num_stages):
        """From a checkpoint, which may hold anything. Raises KeyError, TypeError or ValueError."""
        progress = cls(**state["progress"])
        for field in dataclasses.fields(cls):
            value = getattr(progress, field.name)
            if type(value) is not field.type or field.type is int and not 0 <= value < 1 << 40:
                raise ValueError(f"progress.{field.name} is {value!r:.60}")
        if (
            progress.stage > num_stages
            or len(progress.finals) < progress.stage
            or not all(type(line) is dict for line in progress.lines)
        ):
            raise ValueError("progress does not agree with itself")
        return progress


class NonFinite(Exception):
    """A loss is no number, as all processes have agreed."""


def build_network(config, num_classes):
    """The network of a configuration, on the CPU, with seeded random values."""
    torch.manual_seed(config.training.seed)
    return Network(**config.network_options(num_classes))


def initial_codebook(config, num_classes):
    """The random codebook of a configuration, seeded: real values float32 [num_classes, num_bits]."""
    return random_codebook(
        num_classes,
        config.codes.num_bits,
        config.training.seed,
        config.codes.init_scale,
        config.codes.init_distance,
    )


def make_train_loader(config, shards, processes):
    return TrainLoader(
        shards,
        batch_size=config.training.batch_size // processes.world_size,
        num_workers=config.data.num_workers,
        processes=processes,
        seed=config.training.seed,
        min_scale=config.data.min_scale,
        in_memory=config.data.in_memory,
        on_error=config.data.on_error,
    )


def make_val_loader(config, shards, processes):
    return ValLoader(
        shards,
        batch_size=config.validation.batch_size,
        num_workers=config.data.num_workers,
        processes=processes,
        resolution=config.validation.resolution,
        crop_ratio=config.validation.crop_ratio,
        in_memory=config.data.in_memory,
    )


class Trainer:
    """One run. `run` is None on all but the main process.

    state: of checkpoints/last.pth, to continue from; anyway: even where resume.check finds differences. Raises UserError where the data,
    the configuration and the state do not fit each other.
    """

    def __init__(self, config, run, processes, state=None, anyway=False):
        self.config, self.run_folder, self.processes = config, run, processes
        self.train_shards, val_shards = (
            open_shards(config.data.train_dataset),
            open_shards(config.data.val_dataset),
        )
        self.train_manifest, self.val_manifest = self.train_shards.manifest, val_shards.manifest
        check_same_classes(
            self.train_manifest, self.val_manifest, str(self.train_shards.paths[0]), str(val_shards.paths[0])
        )
        num_classes = self.train_manifest.num_classes
        parts = processes.world_size * config.training.accumulation_steps
        if config.training.batch_size % parts:
            raise UserError(
                f"training.batch_size = {config.training.batch_size} is the total over {processes.world_size} processes with "
                f"training.accumulation_steps = {config.training.accumulation_steps} each, and must be a multiple of {parts}"
            )
        if config.codes.normalize == "batchnorm" and config.training.batch_size == parts:
            raise UserError(
                f"codes.normalize = batchnorm needs 2 images and more at once; training.batch_size = {parts} leaves 1 for each of "
                f"{parts} parts (processes x training.accumulation_steps)"
            )
        self.device = processes.device
        self.network = build_network(config, num_classes)
        if config.codes.init_codebook and (
            state is None or Path(config.codes.init_codebook).exists()
        ):  # a run that goes on needs it no more
            codebook = given = load_codebook(config.codes.init_codebook, config.codes.num_bits)
        else:
            codebook, given = initial_codebook(config, num_classes), None
        if codebook.shape != self.network.codebook.shape:
            raise UserError(
                f"codes.init_codebook = {config.codes.init_codebook}: {list(codebook.shape)}, but the data has "
                f"{num_classes} classes and codes.num_bits = {config.codes.num_bits}"
            )
        self.network.codebook.data.copy_(codebook)
        if config.codes.min_distance and num_classes > 2 ** (
            config.codes.num_bits - config.codes.min_distance + 1
        ):  # Singleton's bound
            raise UserError(
                f"codes.min_distance = {config.codes.min_distance}: no code of {config.codes.num_bits} bits has this distance between "
                f"{num_classes} classes; lower it, or raise codes.num_bits"
            )
        self.identity = resume.identity(config, self.train_shards, val_shards, given)
        if config.model.weights and state is None:
            self.say(load_weights(self.network, config.model.weights, config.model.arch))
        self.network.to(self.device, memory_format=torch.channels_last)
        if self.device.type == "cuda":
            check_launch(self.device)
        self.autocast, _ = autocast_for(config.training.precision, self.device)
        self.train_loader = make_train_loader(config, self.train_shards, processes)
        self.val_loader = make_val_loader(config, val_shards, processes)
        # validation looks for a signal as often as every process has a batch
        self.shared_val_batches = len(val_shards) // processes.world_size // config.validation.batch_size
        self.progress, self._state = Progress(), None
        self.loss_sum = torch.zeros((), device=self.device)  # of the epoch's batches, of this process
        if state is not None:
            self._restore(state, anyway)
        self.agreement, self.watch = Agreement(processes), LossWatch()
        self.saved_at = time.monotonic()

    def say(self, text):
        if self.processes.is_main:
            print(text, flush=True)

    def train(self):
        """Runs what is left of all stages; returns {stage: final metrics}. Raises Stopped after a signal."""
        config, progress, steps = self.config, self.progress, self.train_loader.batches_per_epoch
        for name in config.stages:
            stage = config.stage(name)
            self.say(
                f"{name} stage: {stage.epochs} epochs of {steps} steps, {config.training.batch_size} images a step, "
                f"peak lr {stage.lr:g}, {self.processes.world_size} process(es) on {self.device.type}"
            )
        self.writer = BackgroundWriter()
        try:
            with StopSignals() as self.signals:
                if self._state is None:
                    self._submit("save_class_names", self.train_manifest.class_names)
                    self._write("initial", {"network": self.network.state_dict()})
                elif progress.stage < len(config.stages):
                    self.say(
                        f"continues in epoch {progress.epoch + 1} of the {config.stages[progress.stage]} stage, after {progress.batch} "
                        f"of {steps} steps"
                    )
                    self._submit("log", progress.lines)
                while self.progress.stage < len(config.stages):
                    try:
                        self._run_stage(config.stages[self.progress.stage])
                    except NonFinite:
                        self._leave_out_or_fail(config.stages[self.progress.stage])
                self.writer.wait()
                self._finish()
        finally:
            self.writer.close()
        return self.progress.finals

    def _run_stage(self, name):
        stage, progress = self.config.stage(name), self.progress
        if stage.is_frozen(0):
            self._move_apart(self.network)
        config = self.config
        resolutions = {stage_resolution(stage, config.resolution, epoch) for epoch in range(stage.epochs)}
        engine = Engine(self.network, stage, config.training, config.dist, self.processes, len(resolutions))
        if self._state is not None:
            self._restore_engine(engine)
        elif not progress.global_epoch:
            self._save_last(engine)  # there is always something to go back to
        while progress.epoch < stage.epochs:
            line, metrics = self._epoch(name, stage, engine)
            progress.epoch, progress.batch, progress.global_epoch = (
                progress.epoch + 1,
                0,
                progress.global_epoch + 1,
            )
            self.loss_sum.zero_()
            headline = stage.best_metric + self.suffix
            if metrics[headline] > progress.best:
                progress.best, progress.best_metrics = metrics[headline], metrics
                self._write(
                    "model_best",
                    {"network": self.network.state_dict(), "stage": name, "epoch": progress.epoch},
                )
            self.say(
                f"{name} {progress.epoch}/{stage.epochs}: loss {line['loss']:.4f}, {self._accuracies(metrics)} % top-1, "
                f"{line['images_per_second']:.0f} images/s"
            )
            progress.lines.append(
                {
                    "stage": name,
                    "epoch": progress.epoch,
                    "global_epoch": progress.global_epoch,
                    **line,
                    **metrics,
                }
            )
            self._submit("log", list(progress.lines))
            self._submit("save_codebook", self.network.codebook)
            progress.finals[name], progress.bests[name] = metrics, progress.best_metrics
            if progress.epoch < stage.epochs:
                self._save_last(engine)
        self._write(name, {"network": self.network.state_dict()})
        if engine.ema is not None:
            self._write(f"{name}_ema", {"network": engine.ema.module.state_dict()})
        progress.stage, progress.epoch, progress.batch, progress.best, progress.best_metrics = (
            progress.stage + 1,
            0,
            0,
            -1.0,
            {},
        )
        self.loss_sum.zero_()
        self._save_last(None)

    def _epoch(self, name, stage, engine):
        config, progress, steps = self.config, self.progress, self.train_loader.batches_per_epoch
        resolution = stage_resolution(stage, config.resolution, progress.epoch)
        started = shown = time.perf_counter()
        first, left_out = (
            progress.batch,
            {batch for epoch, batch in progress.left_out if epoch == progress.global_epoch},
        )
        bar = tqdm(
            self.train_loader.epoch(progress.global_epoch, resolution, first),
            initial=first,
            total=steps,
            unit="step",
            mininterval=0.5,
            leave=False,
            desc=f"{name} {progress.epoch + 1}/{stage.epochs}",
            disable=not self.processes.is_main,
        )
        for batch, (images, labels) in enumerate(bar, start=first):
            self._heed(engine)
            lr = learning_rate(stage, progress.epoch * steps + batch, steps)
            if batch not in left_out:
                frozen = stage.is_frozen(progress.epoch + batch / steps)
                if frozen and not engine.codebook_frozen:
                    self._move_apart(self.network)
                engine.codebook_frozen = frozen
                loss = engine.step(images, labels, lr)
                self.loss_sum += loss
                self.watch.add(batch, loss)
            progress.batch = batch + 1
            if not bar.disable and time.perf_counter() - shown > LOSS_SECONDS:
                shown = time.perf_counter()
                bar.set_postfix(
                    loss=f"{self.loss_sum.item() / max(1, batch + 1 - len(left_out)):.3f}",
                    lr=f"{lr:.3g}",
                    refresh=False,
                )
        if first < steps:  # else this was done before the checkpoint
            self.processes.average(running_statistics(*_networks(engine)))
            if progress.epoch + 1 == stage.epochs:
                for network in _networks(engine):
                    self._move_apart(network)
        mean_loss = (
            self.processes.sum(self.loss_sum.clone()).item()
            / max(1, steps - len(left_out))
            / self.processes.world_size
        )
        seconds = time.perf_counter() - started
        if not math.isfinite(mean_loss):
            raise NonFinite
        validation_started = time.perf_counter()
        metrics = self._validate(engine, self.network)
        if engine.ema is not None:
            metrics |= self._validate(engine, engine.ema.module, ema=True)
        line = {
            "loss": mean_loss,
            "lr": learning_rate(stage, (progress.epoch + 1) * steps - 1, steps),
            "resolution": resolution,
            "images_per_second": (steps - first) * config.training.batch_size / seconds,
            "train_seconds": seconds,
            "val_seconds": time.perf_counter() - validation_started,
            "compiled": engine.compiled,
        }
        return line, metrics

    def _move_apart(self, network):
        """codes.min_distance, at the moment from which the codebook is used as it is."""
        distance = self.config.codes.min_distance
        if not distance:
            return
        before = network.codebook.detach().cpu()
        # what is nearly equally good may be decided otherwise on another processor
        after = self.processes.on_main(lambda: move_apart(before, distance))
        moved = ((after > 0) != (before > 0)).any(1)
        if moved.any():
            network.codebook.data.copy_(after)
            whose = "" if network is self.network else " of the weights' average"
            self.say(
                f"codes.min_distance = {distance}: {int(moved.sum())} of {len(moved)} class codes{whose} were moved"
            )
        if len(after) > 1 and health(after).min_distance < distance:
            self.say(
                f"warning: codes.min_distance = {distance}: no place was found for some class codes, which stay nearer to each other; "
                "lower it, or raise codes.num_bits"
            )

    def _validate(self, engine, network, ema=False):
        def batches():
            for number, batch in enumerate(self.val_loader):
                if number < self.shared_val_batches:
                    self._heed(engine, validating=True)
                yield batch

        found = predict(
            network,
            batches(),
            self.processes,
            flip=self.config.validation.lr_tta,
            autocast=self.autocast,
            num_classes=self.train_manifest.num_classes,
        )
        return metric_table.evaluate(found, self.train_manifest.num_classes, ema)

    @property
    def suffix(self):
        return metric_table.FLIP if self.config.validation.lr_tta else ""

    def _accuracies(self, metrics):
        """The decoders' top-1 in %, as text."""
        flip = self.config.validation.lr_tta
        top1 = {d.short: metrics[metric_table.name("top1", d.name, flip)] for d in DECODERS.values()}
        return ", ".join(f"{title} {100 * value:.2f}" for title, value in top1.items())

    # ---- between two steps -------------------------------------------------------------------------------------------

    def _heed(self, engine, validating=False):
        """What no step may miss: a signal, a loss that is no number, the time for a checkpoint. All processes do the same at the same step."""
        self.writer.check()
        minutes = self.config.training.checkpoint_minutes
        due = bool(
            self.run_folder
            and minutes
            and not validating
            and time.monotonic() - self.saved_at >= 60 * minutes
        )
        if due:
            self.saved_at = time.monotonic()
        save, stop, non_finite, eager = self.agreement.exchange(
            due, bool(self.signals.received), self.watch.found is not None, engine.compiler_failed
        )
        if eager:
            engine.run_eagerly()
        if non_finite:
            raise NonFinite
        if stop:
            self._save_last(engine)
            self.writer.wait()
            if self.run_folder:
                self.say(
                    f"stopped by {self.signals.received or 'a signal to another process'}; continue with --resume={self.run_folder.path}"
                )
            raise Stopped
        if save and not validating:
            self._save_last(engine)

    def _leave_out_or_fail(self, name):
        """After a loss that is no number: writes down which samples led to it, and goes back to last.pth; else raises UserError.

        What is left out is the batch and the one before it, whose update its loss was computed with.
        """
        stage, progress, steps = (self.config.stage(name), self.progress, self.train_loader.batches_per_epoch)
        self.agreement.forget()
        self.watch.look(wait=True)
        found = self.processes.gather_objects(self.watch.found)
        batch = min((first for first, _ in filter(None, found)), default=progress.batch - 1)
        place = progress.global_epoch * steps + batch
        suspects = [
            list(divmod(place, steps)) for place in (place - 1, place) if place >= 0
        ]  # global epoch, batch
        samples = self.processes.gather_objects(
            [
                [self.train_shards.name(index) for index in self.train_loader.order(e)[b].tolist()]
                for e, b in suspects
            ]
        )
        step = progress.epoch * steps + batch
        lr = learning_rate(stage, step, steps)
        losses = {
            rank: str(loss)
            for rank, (first, loss) in enumerate(f or (None, None) for f in found)
            if first == batch
        }
        report = {
            "stage": name,
            "epoch": progress.epoch + 1,
            "batch": batch,
            "step": step,
            "lr": lr,
            "loss_of_process": losses,
            "samples_of_process": {rank: names[-1] for rank, names in enumerate(samples)},
            "samples_of_process_in_the_batch_before": {
                rank: names[0] for rank, names in enumerate(samples) if len(suspects) > 1
            },
        }
        path = self.processes.on_main(lambda: self.run_folder.save_non_finite(report))
        what = (
            f"the loss became {next(iter(losses.values()), 'infinite')} at step {step} of the {name} stage (epoch {progress.epoch + 1}, "
            f"batch {batch}, lr {lr:g}); {path} names the batch's samples"
        )
        if progress.num_non_finite >= self.config.training.skip_non_finite:
            raise UserError(
                f"{what}; checkpoints/last.pth is from before. Lower {name}.lr, lengthen {name}.lr_peak_epoch, or leave such "
                f"batches out: training.skip_non_finite={progress.num_non_finite + 1}"
            )
        left_out, num_non_finite = progress.left_out + suspects, progress.num_non_finite + 1
        self.writer.wait()
        self._restore(self.processes.on_main(self.run_folder.load_last if self.run_folder else None))
        self.progress.left_out, self.progress.num_non_finite = left_out, num_non_finite
        self.watch = LossWatch()
        self.say(
            f"warning: {what}. {num_non_finite} of {self.config.training.skip_non_finite}: goes back to step {self.progress.batch} of "
            f"epoch {self.progress.epoch + 1} and leaves out batch {batch} and the one before it"
        )

    # ---- state -------------------------------------------------------------------------------------------------------

    def _save_last(self, engine):
        """Everything needed to continue, to last.pth; the file is written in the background. engine: None between stages."""
        own = torch.cat(
            [t.flatten() for t in (*running_statistics(*_networks(engine, self.network)), self.loss_sum)]
        )
        of_process = torch.stack(self.processes.gather(own))
        if not torch.isfinite(of_process[:, -1]).all():
            raise NonFinite
        self.saved_at = time.monotonic()
        if self.run_folder:
            state = {
                "identity": self.identity,
                "progress": dataclasses.asdict(self.progress),
                "network": self.network.state_dict(),
                "engine": engine and engine.state_dict(),
                "of_process": of_process,
            }
            self.writer.submit(self._write_last, snapshot(state))

    def _write_last(self, state):
        """In the background. Weights can be spoilt by an update whose loss was still a number; the next loss will tell."""
        if all(torch.isfinite(value).all() for value in state["network"].values()):
            self.run_folder.save_last(state, self.config.training.keep)

    def _restore(self, state, anyway=True):
        """Takes over a state but for the engine, which does not exist yet."""
        where = "checkpoints/last.pth"
        try:
            # the others' machines may have shards of their own
            for line in self.processes.on_main(
                lambda: resume.check(state["identity"], self.identity, where, anyway)
            ):
                self.say(f"warning: {where} is of a run that differs: {line}")
            self.progress = Progress.of(state, len(self.config.stages))
            self.network.load_state_dict(state["network"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{where} does not hold the state of a run: {type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error
        self.progress.batch = min(self.progress.batch, self.train_loader.batches_per_epoch)
        self._state = state

    def _restore_engine(self, engine):
        state, self._state = self._state, None
        own = [
            *running_statistics(*_networks(engine if state["engine"] else None, self.network)),
            self.loss_sum,
        ]
        try:
            if state["engine"]:
                engine.load_state_dict(state["engine"])
            of_process = state["of_process"]
            if len(of_process) == self.processes.world_size:
                values = of_process[self.processes.rank]
            else:
                values = of_process.mean(0)
                self.say(
                    f"warning: {len(of_process)} processes were at work before, now {self.processes.world_size}: each continues from the "
                    "mean of their running statistics of batch norm; the result differs as two runs do"
                )
            for tensor, value in zip(own, values.split([t.numel() for t in own]), strict=True):
                tensor.copy_(value.view_as(tensor))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise UserError(
                f"checkpoints/last.pth does not hold the state of this run's optimiser and processes: {type(error).__name__}: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def _write(self, name, state):
        self._submit("save", name, state)

    def _submit(self, method, *arguments):
        """Has the run folder's `method` called in the background, with the arguments as they are now."""
        if self.run_folder:
            self.writer.submit(getattr(self.run_folder, method), *map(snapshot, arguments))

    def _finish(self):
        """results.csv, and the three numbers: class codes of the codebook stage, MHD and ED of the instance stage; or all of the joint stage."""
        rows = []
        for name in self.config.stages:
            headlines = metric_table.headlines(self.config.stage(name), self.config.validation.lr_tta)
            for metric, value in self.progress.finals[name].items():
                rows.append(
                    [
                        f"{name}/{metric}",
                        f"{value:.6f}",
                        f"{self.progress.bests[name][metric]:.6f}",
                        int(metric in headlines),
                    ]
                )
                if metric in headlines:
                    self.say(f"{name} stage, {metric}: {100 * value:.2f} %")
        self.say(health(self.network.codebook))
        if self.run_folder:
            self.run_folder.save_results(rows)
            self.say(f"run folder: {self.run_folder.path}")


def _networks(engine, network=None):
    """The networks whose running statistics differ between processes: the trained one, and its average over steps."""
    if engine is None:
        return [network]
    return [engine.network] + ([engine.ema.module] if engine.ema is not None else [])
