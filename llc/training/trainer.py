"""Runs the stages: batch, loss, backward, step; after each epoch validation, the log line, the checkpoint.

After the last stage the decoders that learn are fitted to the train images' codes.
"""

import hashlib
import math
import time

import torch

from llc import progress as display
from llc.codebook import health
from llc.codes import pack_bits, unpack_bits
from llc.evaluation import fitting
from llc.evaluation import metrics as metric_names
from llc.evaluation.decoders import fitted_decoders
from llc.network import running_statistics
from llc.text import counted
from llc.training import min_distance, results
from llc.training.build import build, fits_decoders
from llc.training.delivery import Deliveries
from llc.training.engine import Engine
from llc.training.interruption import StopSignals
from llc.training.recovery import NonFinite
from llc.training.saving import Saver
from llc.training.schedules import learning_rate, resolutions, stage_resolution, step_seed
from llc.training.state import RunState, networks
from llc.training.supervisor import Supervisor
from llc.training.validation import Validation


class Trainer:
    """One run. run_folder is None on all but the main process.

    checkpoint: the content of checkpoints/last.pth, to resume from; anyway: even if resume.check finds
    differences. Raises UserError if the data, the configuration and the checkpoint do not fit each other.
    """

    def __init__(self, config, run_folder, processes, checkpoint=None, anyway=False):
        self.config, self.run_folder, self.processes = config, run_folder, processes
        self.parts = build(config, processes, resumes=checkpoint is not None)
        self.state = RunState(config, self.parts, processes)
        if checkpoint is not None:
            self.state.restore(checkpoint, anyway)
        self.validation = Validation(config, self.parts, processes)

    @property
    def progress(self):
        return self.state.progress

    @property
    def network(self):
        return self.state.network

    def say(self, text):
        display.say(text, self.processes)

    def train(self):
        """Runs what is left of all stages; returns {stage: final metrics}. Raises Stopped after a signal."""
        config, parts = self.config, self.parts
        for stage in map(config.stage, config.stages):
            if not stage.epochs:
                self.say(results.untrained_text(stage))
                continue
            self.say(
                f"{stage.name} stage: {counted(stage.epochs, 'epoch')} of "
                f"{counted(parts.steps, 'step')}, "
                f"{counted(config.training.batch_size, 'image')} per step, peak lr {stage.lr:g}, "
                f"{counted(self.processes.world_size, 'process', 'processes')} on "
                f"{self.processes.device.type}"
            )
        training = config.training
        self.deliveries = Deliveries(self.run_folder.path, config) if self.run_folder else None
        self.saver = Saver(self.run_folder, training.checkpoint_minutes, training.keep, self.deliveries)
        try:
            with StopSignals() as signals:
                self.supervisor = Supervisor(config, parts, self.state, self.saver, signals, self.processes)
                if not self.state.resumed:
                    self.saver.submit("save_class_names", parts.class_names)
                    self.saver.submit("save", "initial", {"network": self.network.state_dict()})
                elif self.progress.stage < len(config.stages):
                    self.say(
                        f"continues in epoch {self.progress.epoch + 1} of the "
                        f"{config.stages[self.progress.stage]} stage, after {self.progress.batch:,} of "
                        f"{counted(parts.steps, 'step')}"
                    )
                    self.saver.submit("log", self.progress.lines)
                if self.deliveries and self.state.resumed:
                    self.deliveries.send(list(self.progress.lines))
                while self.progress.stage < len(config.stages):
                    try:
                        self._run_stage(config.stage(config.stages[self.progress.stage]))
                    except NonFinite:
                        self.supervisor.recover()
                self._finish()
        finally:
            self.saver.close()
            if self.deliveries:
                self.deliveries.close()
        return self.progress.finals

    def _run_stage(self, stage):
        config, progress = self.config, self.progress
        # Where there is no room, a second time would move other codes than those in the head.
        done = config.codes.head == "expected" and progress.stage == config.stage_from_classifier
        if stage.is_frozen(0) and not stage.dense and not self.state.within_stage and not done:
            self._enforce_min_distance(self.network)
        num_resolutions = len(set(resolutions(stage, config.resolution)))
        engine = Engine(
            self.network,
            stage,
            config.training,
            config.dist,
            self.processes,
            num_resolutions,
            self.state.classifier,
            config.codes.prefixes,
        )
        if self.state.resumed:
            self.state.restore_engine(engine)
        elif not progress.global_epoch:
            self.supervisor.save_last(engine)  # so that there is always a checkpoint to return to
        if not stage.epochs:
            self._validate_untrained(stage, engine)
        if engine.compiled and progress.epoch < stage.epochs:
            self.say("compiling the first step, which can take minutes")
        while progress.epoch < stage.epochs:
            line = self._train_epoch(stage, engine)
            self._end_epoch(stage, engine, line)
        self.saver.submit("save", stage.name, {"network": self.network.state_dict()})
        if engine.ema is not None:
            self.saver.submit("save", f"{stage.name}_ema", {"network": engine.ema.module.state_dict()})
        self.state.end_stage(stage)
        self.supervisor.save_last(None)

    def _train_epoch(self, stage, engine):
        """Trains what is left of an epoch; returns its part of the log line. Raises NonFinite, Stopped."""
        config, progress, state, steps = self.config, self.progress, self.state, self.parts.steps
        resolution = stage_resolution(stage, config.resolution, progress.epoch)
        first, started = progress.batch, time.perf_counter()
        skipped = {batch for epoch, batch in progress.left_out if epoch == progress.global_epoch}
        batches = self.parts.train_loader.epoch(progress.global_epoch, resolution, first)
        title = f"{stage.name} {progress.epoch + 1}/{stage.epochs}"
        with display.bar(steps, title, "step", first, disable=not self.processes.is_main) as bar:
            for batch, (images, labels) in enumerate(batches, start=first):
                self.supervisor.between_steps(engine)
                lr = learning_rate(stage, progress.epoch * steps + batch, steps)
                if batch not in skipped:
                    position = progress.epoch + batch / steps
                    self._freeze_if_due(stage, engine, position)
                    torch.manual_seed(
                        step_seed(config.training.seed, progress.global_epoch, batch, self.processes.rank)
                    )
                    loss = engine.step(images, labels, lr, position)
                    state.loss_sum += loss
                    self.supervisor.watch.add(batch, loss)
                progress.batch = batch + 1
                if bar.due:  # each time the host waits for the device
                    bar.note(loss=state.loss_sum.item() / max(1, batch + 1 - len(skipped)), lr=lr)
                bar.update()
        if first < steps:  # otherwise this was done before the checkpoint
            self.processes.average(running_statistics(*networks(engine)))
            if progress.epoch + 1 == stage.epochs and not stage.dense:
                for network in networks(engine):
                    # once frozen, the codebook stays; that of the moving average may still be on its way
                    if network is not self.network or not engine.codebook_frozen:
                        self._enforce_min_distance(network)
        total = self.processes.sum(state.loss_sum.clone()).item()
        mean_loss = total / max(1, steps - len(skipped)) / self.processes.world_size
        seconds = time.perf_counter() - started
        if not math.isfinite(mean_loss):
            raise NonFinite
        return {
            "stage": stage.name,
            "epoch": progress.epoch + 1,
            "global_epoch": progress.global_epoch + 1,
            "loss": mean_loss,
            "lr": learning_rate(stage, (progress.epoch + 1) * steps - 1, steps),
            "resolution": resolution,
            "images_per_second": (steps - first) * config.training.batch_size / seconds,
            "train_seconds": seconds,
        }

    def _validate_untrained(self, stage, engine):
        """Validates a stage of no epochs, which then has results but no line in the log."""
        progress = self.progress
        metrics = self._validated(stage, engine)
        content = {"network": self.network.state_dict(), "stage": stage.name, "epoch": 0}
        self.saver.submit("save", "model_best", content)
        self.saver.submit("log", list(progress.lines))
        self.saver.submit("save_codebook", self.network.codebook)
        progress.finals[stage.name] = progress.bests[stage.name] = metrics

    def _validated(self, stage, engine):
        """The metrics of the network, and of the weights' moving average. Raises Stopped."""
        return self.validation.run(
            engine, lambda: self.supervisor.between_steps(engine, validating=True), codes=not stage.dense
        )

    def _end_epoch(self, stage, engine, line):
        """Validates, then writes down what was found."""
        progress, flip, started = self.progress, self.config.validation.lr_tta, time.perf_counter()
        metrics = self._validated(stage, engine)
        line |= {"val_seconds": time.perf_counter() - started, "compiled": engine.compiled, **metrics}
        progress.end_epoch()
        self.state.loss_sum.zero_()
        best = metrics[stage.best_metric + (metric_names.FLIP if flip else "")]
        if best > progress.best:
            progress.best, progress.best_metrics = best, metrics
            content = {"network": self.network.state_dict(), "stage": stage.name, "epoch": progress.epoch}
            self.saver.submit("save", "model_best", content)
        self.say(results.epoch_text(stage, line, metrics, flip))
        progress.lines.append(line)
        self.saver.submit("log", list(progress.lines))
        self.saver.submit("save_codebook", self.network.codebook)
        progress.finals[stage.name], progress.bests[stage.name] = metrics, progress.best_metrics
        if progress.epoch < stage.epochs:
            self.supervisor.save_last(engine)

    def _freeze_if_due(self, stage, engine, epoch):
        frozen = stage.is_frozen(epoch)
        if frozen and not engine.codebook_frozen and not stage.dense:
            self._enforce_min_distance(self.network)
        engine.codebook_frozen = frozen

    def _enforce_min_distance(self, network):
        whose = "" if network is self.network else " of the weights' moving average"
        min_distance.enforce(network, self.config.codes, self.processes, whose)

    def _fit_decoders(self):
        """Fits the decoders that learn to the train images' codes, and adds their figures. Raises Stopped.

        A run that resumes here does all of it again, because it is short beside the training. Returns the
        codes and labels, or None if no image has a code.
        """
        validation, between_batches = self.validation, self.supervisor.after_the_stages
        self.say("encoding the train set")
        codes, labels = validation.encode_train_images(self.network, between_batches)
        if not len(codes):
            self.say(
                "warning: z is NaN or infinite for every train image, so these decoders cannot be fitted and "
                f"have no figures: {', '.join(fitted_decoders())}"
            )
            return None
        fitted = self._fit(self.network, codes, labels, save=True)
        self.say(f"fitted to the codes of {fitted.num_images:,} train images: {', '.join(fitted.learnt)}")
        metrics = validation.run_fitted(self.network, fitted.learnt, between_batches)
        finals, last = self.progress.finals, self.config.stages[-1]
        finals[last] = metrics | finals[last]  # which keeps what the epoch's validation found of the others
        return codes, labels

    def _fit(self, network, codes, labels, save=False):
        """The Fitted, on every process; the main process fits and saves it. Raises UserError."""
        # Machines may have train betons of their own; then this stands for all of them together.
        identities = sorted(set(self.processes.gather_objects(self.parts.train_shards.identity)))
        images = (
            identities[0]
            if len(identities) == 1
            else hashlib.sha256("".join(identities).encode()).hexdigest()
        )

        def fit():
            fitted = fitting.fit(network, codes, labels, source=self.config.data.train_dataset, images=images)
            if save:
                self.run_folder.save_decoder(fitted)
            return fitted

        return self.processes.on_main(fit)

    def _measure_first_bits(self, codes, labels):
        """Adds the figures of the codes within the codes (codes.nested): top1_mhd of 8 bits is top1_mhd@8.

        codes, labels: of the train images, or None: then decoders that learn have no figures. Raises Stopped.
        """
        finals, last = self.progress.finals, self.config.stages[-1]
        flip, whole = self.config.validation.lr_tta, self.config.codes.num_bits
        for num_bits in self.config.codes.prefixes[:-1]:
            network, learnt = self.network.first_bits(num_bits), {}
            if codes is not None:
                first = pack_bits(unpack_bits(codes, whole)[:, :num_bits])
                learnt = self._fit(network, first, labels).learnt
            metrics = self.validation.run_fitted(network, learnt, self.supervisor.after_the_stages)
            finals[last] = finals[last] | {f"{name}@{num_bits}": v for name, v in metrics.items()}
            self.say(results.first_bits_text(num_bits, metrics, flip))

    def _finish(self):
        """Fits decoders, writes results.csv and prints the headlines. Raises Stopped."""
        of_train = self._fit_decoders() if fits_decoders(self.config) else None
        if not self.config.stage(self.config.stages[-1]).dense:
            self._measure_first_bits(*of_train or (None, None))
        self.say("writing the results")
        self.saver.wait()
        for text in results.headline_texts(self.config, self.progress):
            self.say(text)
        self.say(health(self.network.codebook))
        if self.run_folder:
            self.run_folder.save_results(results.rows(self.config, self.progress))
            self.deliveries.finish(results.final_figures(self.config, self.progress))
            self.say(f"run folder: {self.run_folder.path}")
