"""Runs the stages: batch, loss, backward, step; after each epoch validation, the log line, the checkpoint."""
import dataclasses
import math
import time

import torch
from tqdm import tqdm

from llc.codebook import health, load_codebook, random_codebook
from llc.data.loaders import TrainLoader, ValLoader
from llc.data.manifest import check_same_classes
from llc.data.shards import open_shards
from llc.errors import UserError
from llc.evaluation.classification import evaluate
from llc.evaluation.predict import predict
from llc.network import Network, load_weights
from llc.training.engine import Engine, autocast_for
from llc.training.schedules import learning_rate, resolution_at

LOSS_SECONDS = 2.0  # the bar shows a new loss this often: each time the host waits once for the device
HEADLINE = {"codebook": "top1_class", "instance": "top1_mhd"}


@dataclasses.dataclass
class Progress:
    """Where a run stands: all of its state beside the network's and the engine's."""

    stage: int = 0           # index into config.stages
    epoch: int = 0           # finished epochs of it
    global_epoch: int = 0    # finished epochs of all stages
    best: float = -1.0       # headline of the stage's best epoch
    best_metrics: dict = dataclasses.field(default_factory=dict)
    finals: dict = dataclasses.field(default_factory=dict)  # stage name -> final metrics
    bests: dict = dataclasses.field(default_factory=dict)   # stage name -> metrics of its best epoch


def build_network(config, num_classes):
    """The network of a configuration, on the CPU, with seeded random values."""
    torch.manual_seed(config.training.seed)
    scale = config.codes.num_bits ** -0.5 if config.codes.logit_scale == "sqrt" else 1.0
    return Network(config.model.arch, config.codes.num_bits, num_classes, width=config.model.width,
                   use_blurpool=config.training.use_blurpool, logit_scale=scale)


def make_train_loader(config, shards, processes):
    return TrainLoader(shards, processes=processes, batch_size=config.training.batch_size // processes.world_size,
                       num_workers=config.data.num_workers, seed=config.training.seed, min_scale=config.data.min_scale,
                       in_memory=config.data.in_memory, on_error=config.data.on_error)


def make_val_loader(config, shards, processes):
    return ValLoader(shards, batch_size=config.validation.batch_size, num_workers=config.data.num_workers, processes=processes,
                     resolution=config.validation.resolution, crop_ratio=config.validation.crop_ratio, in_memory=config.data.in_memory)


class Trainer:
    """One run. `run` is None on all but the main process. resume: state of checkpoints/last.pth."""

    def __init__(self, config, run, processes, resume=None):
        self.config, self.run_folder, self.processes = config, run, processes
        train_shards, val_shards = open_shards(config.data.train_dataset), open_shards(config.data.val_dataset)
        self.train_manifest, self.val_manifest = train_shards.manifest, val_shards.manifest
        check_same_classes(self.train_manifest, self.val_manifest, config.data.train_dataset, config.data.val_dataset)
        num_classes = self.train_manifest.num_classes
        parts = processes.world_size * config.training.accumulation_steps
        if config.training.batch_size % parts:
            raise UserError(f"training.batch_size = {config.training.batch_size} is the total over {processes.world_size} processes with "
                            f"training.accumulation_steps = {config.training.accumulation_steps} each, and must be a multiple of {parts}")
        self.device = processes.device
        self.network = build_network(config, num_classes)
        codebook = random_codebook(num_classes, config.codes.num_bits, config.training.seed)
        if config.codes.init_codebook and resume is None:
            codebook = load_codebook(config.codes.init_codebook)
            if codebook.shape != self.network.codebook.shape:
                raise UserError(f"codes.init_codebook = {config.codes.init_codebook}: {list(codebook.shape)}, but the data has "
                                f"{num_classes} classes and codes.num_bits = {config.codes.num_bits}")
        self.network.codebook.data.copy_(codebook)
        if config.model.weights and resume is None:
            self.say(load_weights(self.network, config.model.weights, config.model.arch))
        self.progress, self.resumed = Progress(), resume
        if resume is not None:
            self.progress = Progress(**resume["progress"])
            self.network.load_state_dict(resume["network"])
        self.network.to(self.device, memory_format=torch.channels_last)
        self.autocast, _ = autocast_for(config.training.precision, self.device)
        self.train_loader = make_train_loader(config, train_shards, processes)
        self.val_loader = make_val_loader(config, val_shards, processes)

    def say(self, text):
        if self.processes.is_main:
            print(text, flush=True)

    def train(self):
        """Runs what is left of all stages; returns {stage: final metrics}."""
        config, steps = self.config, self.train_loader.batches_per_epoch
        for name in config.stages:
            stage = getattr(config, name)
            self.say(f"{name} stage: {stage.epochs} epochs of {steps} steps, {config.training.batch_size} images a step, "
                     f"peak lr {stage.lr:g}, {self.processes.world_size} process(es) on {self.device.type}")
        if self.run_folder and self.resumed is None:
            self.run_folder.save("initial", {"network": self.network.state_dict()})
        while self.progress.stage < len(config.stages):
            self._run_stage(config.stages[self.progress.stage])
        self._finish()
        return self.progress.finals

    def _run_stage(self, name):
        stage, progress = getattr(self.config, name), self.progress
        engine = Engine(self.network, name, self.config.training, self.config.dist, self.processes)
        if self.resumed is not None and progress.epoch:
            engine.load_state_dict(self.resumed["engine"])
        self.resumed = None
        while progress.epoch < stage.epochs:
            line = self._epoch(name, stage, engine)
            progress.epoch += 1
            progress.global_epoch += 1
            metrics = {k: v for k, v in line.items() if k.startswith(("top", "none", "tied"))}
            headline = self.headline(name)
            if line[headline] > progress.best:
                progress.best, progress.best_metrics = line[headline], metrics
                self._save("model_best", {"network": self.network.state_dict(), "stage": name, "epoch": progress.epoch})
            self.say(f"{name} {progress.epoch}/{stage.epochs}: loss {line['loss']:.4f}, class {100 * line[self.suffixed('top1_class')]:.2f}, "
                     f"MHD {100 * line[self.suffixed('top1_mhd')]:.2f}, ED {100 * line[self.suffixed('top1_ed')]:.2f} % top-1, "
                     f"{line['images_per_second']:.0f} images/s")
            if self.run_folder:
                self.run_folder.log({"stage": name, "epoch": progress.epoch, "global_epoch": progress.global_epoch, **line})
                self.run_folder.save_codebook(self.network.codebook)
            if progress.epoch == stage.epochs:
                progress.finals[name], progress.bests[name] = metrics, progress.best_metrics
                self._save(name, {"network": self.network.state_dict()})
                if engine.ema is not None:
                    self._save(f"{name}_ema", {"network": engine.ema.module.state_dict()})
                progress.stage, progress.epoch, progress.best, progress.best_metrics = progress.stage + 1, 0, -1.0, {}
                self._save_last(engine)
                return
            self._save_last(engine)

    def _epoch(self, name, stage, engine):
        config, progress, steps = self.config, self.progress, self.train_loader.batches_per_epoch
        resolution = resolution_at(config.resolution, progress.epoch) if name == "codebook" else config.resolution.max_res
        total_loss = torch.zeros((), device=self.device)
        started = shown = time.perf_counter()
        bar = tqdm(self.train_loader.epoch(progress.global_epoch, resolution), total=steps, unit="step", mininterval=0.5, leave=False,
                   desc=f"{name} {progress.epoch + 1}/{stage.epochs}", disable=not self.processes.is_main)
        for batch, (images, labels) in enumerate(bar):
            lr = learning_rate(stage, progress.epoch * steps + batch, steps)
            total_loss += engine.step(images, labels, lr)
            if not bar.disable and time.perf_counter() - shown > LOSS_SECONDS:
                shown = time.perf_counter()
                bar.set_postfix(loss=f"{total_loss.item() / (batch + 1):.3f}", lr=f"{lr:.3g}", refresh=False)
        mean_loss = self.processes.sum(total_loss).item() / (steps * self.processes.world_size)
        seconds = time.perf_counter() - started
        if not math.isfinite(mean_loss):
            raise UserError(f"the loss became {mean_loss} in epoch {progress.epoch + 1} of the {name} stage (lr up to {stage.lr:g}); "
                            f"lower {name}.lr or lengthen {name}.lr_peak_epoch; the last good epoch is in checkpoints/last.pth")
        validation_started = time.perf_counter()
        metrics = self._validate(self.network)
        if engine.ema is not None:
            metrics.update({f"{key}_ema": value for key, value in self._validate(engine.ema.module).items()})
        return {"loss": mean_loss, "lr": lr, "resolution": resolution, "images_per_second": steps * config.training.batch_size / seconds,
                "train_seconds": seconds, "val_seconds": time.perf_counter() - validation_started, **metrics}

    def _validate(self, network):
        self.processes.average_buffers(network)
        found = predict(network, self.val_loader, self.processes, flip=self.config.validation.lr_tta, autocast=self.autocast,
                        num_classes=self.train_manifest.num_classes)
        return evaluate(found, network.codebook)

    def suffixed(self, metric):
        return metric + ("_flip" if self.config.validation.lr_tta else "")

    def headline(self, stage):
        return self.suffixed(HEADLINE[stage])

    def _save(self, name, state):
        if self.run_folder:
            self.run_folder.save(name, state)

    def _save_last(self, engine):
        self._save("last", {"network": self.network.state_dict(), "engine": engine.state_dict(),
                            "progress": dataclasses.asdict(self.progress)})

    def _finish(self):
        """results.csv, and the three numbers: class codes after the codebook stage, MHD and ED after the instance stage."""
        rows = []
        for name in self.config.stages:
            for metric, value in self.progress.finals[name].items():
                headline = metric == self.headline(name) or (name == "instance" and metric == self.suffixed("top1_ed"))
                rows.append([f"{name}/{metric}", f"{value:.6f}", f"{self.progress.bests[name][metric]:.6f}", int(headline)])
                if headline:
                    self.say(f"{name} stage, {metric}: {100 * value:.2f} %")
        self.say(health(self.network.codebook))
        if self.run_folder:
            self.run_folder.save_results(rows)
            self.run_folder.close()
            self.say(f"run folder: {self.run_folder.path}")
