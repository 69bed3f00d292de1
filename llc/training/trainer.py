"""Runs the stages: batch, loss, backward, step; after each epoch validation, the log line, the checkpoint."""
import dataclasses
import math
import time

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from llc.checkpoints import load_weights
from llc.codebook import health, load_codebook, random_codebook
from llc.data.loaders import TrainLoader, ValLoader
from llc.data.manifest import check_same_classes, verify
from llc.errors import UserError
from llc.evaluation.classification import evaluate
from llc.evaluation.predict import predict
from llc.network import Network
from llc.training.schedules import learning_rate, resolution_at
from llc.training.stages import StageModule, autocast_for, parameter_groups

LOSS_SECONDS = 2.0  # the bar shows a new loss this often: each time the host waits once for the device
HEADLINE = {"codebook": "top1_class", "instance": "top1_mhd"}


@dataclasses.dataclass
class Progress:
    """Where a run stands: all of its state beside network, optimiser and gradient scaler."""

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
    return Network(**config.network_options(num_classes))


def make_val_loader(config, num_samples, processes):
    return ValLoader(config.data.val_dataset, num_samples, batch_size=config.validation.batch_size,
                     num_workers=config.data.num_workers, processes=processes, resolution=config.validation.resolution,
                     crop_ratio=config.validation.crop_ratio)


class Trainer:
    """One run. `run` is None on all but the main process. resume: state of checkpoints/last.pth."""

    def __init__(self, config, run, processes, resume=None):
        self.config, self.run_folder, self.processes = config, run, processes
        self.train_manifest, self.val_manifest = verify(config.data.train_dataset), verify(config.data.val_dataset)
        check_same_classes(self.train_manifest, self.val_manifest, config.data.train_dataset, config.data.val_dataset)
        num_classes = self.train_manifest.num_classes
        if config.training.batch_size % processes.world_size:
            raise UserError(f"training.batch_size = {config.training.batch_size} is the total over {processes.world_size} processes "
                            f"and must be a multiple of that")
        self.device = processes.device
        self.network = build_network(config, num_classes)
        codebook = random_codebook(num_classes, config.codes.num_bits, config.training.seed)
        if config.codes.init_codebook and resume is None:
            codebook = load_codebook(config.codes.init_codebook, config.codes.num_bits)
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
        self.train_loader = TrainLoader(
            config.data.train_dataset, self.train_manifest.num_samples, processes=processes,
            batch_size=config.training.batch_size // processes.world_size, num_workers=config.data.num_workers,
            seed=config.training.seed, min_scale=config.data.min_scale)
        self.val_loader = make_val_loader(config, self.val_manifest.num_samples, processes)

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
            self.run_folder.save_class_names(self.train_manifest.class_names)
            self.run_folder.save("initial", {"network": self.network.state_dict()})
        while self.progress.stage < len(config.stages):
            self._run_stage(config.stages[self.progress.stage])
        self._finish()
        return self.progress.finals

    def _run_stage(self, name):
        stage, progress = getattr(self.config, name), self.progress
        module = StageModule(self.network, name, self.config.training.label_smoothing)
        optimizer = torch.optim.SGD(parameter_groups(module, self.config.training.weight_decay), lr=stage.lr,
                                    momentum=self.config.training.momentum)
        _, scaler = autocast_for(self.config.training.precision, self.device)
        if self.resumed is not None and progress.epoch:
            optimizer.load_state_dict(self.resumed["optimizer"])
            scaler.load_state_dict(self.resumed["scaler"])
        self.resumed = None
        if self.processes.world_size > 1:
            # batch norm's statistics are averaged once an epoch (_epoch) instead of being sent at every step
            module = DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True,
                                             device_ids=[self.device] if self.device.type == "cuda" else None)
        while progress.epoch < stage.epochs:
            line = self._epoch(name, stage, module, optimizer, scaler)
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
                progress.stage, progress.epoch, progress.best, progress.best_metrics = progress.stage + 1, 0, -1.0, {}
                self._save_last(optimizer, scaler)
                return
            self._save_last(optimizer, scaler)

    def _epoch(self, name, stage, module, optimizer, scaler):
        config, progress, steps = self.config, self.progress, self.train_loader.batches_per_epoch
        resolution = resolution_at(config.resolution, progress.epoch) if name == "codebook" else config.resolution.max_res
        total_loss = torch.zeros((), device=self.device)
        started = shown = time.perf_counter()
        module.train()
        bar = tqdm(self.train_loader.epoch(progress.global_epoch, resolution), total=steps, unit="step", mininterval=0.5, leave=False,
                   desc=f"{name} {progress.epoch + 1}/{stage.epochs}", disable=not self.processes.is_main)
        for batch, (images, labels) in enumerate(bar):
            lr = learning_rate(stage, progress.epoch * steps + batch, steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with self.autocast():
                loss = module(images, labels.long())
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total_loss += loss.detach()
            if not bar.disable and time.perf_counter() - shown > LOSS_SECONDS:
                shown = time.perf_counter()
                bar.set_postfix(loss=f"{total_loss.item() / (batch + 1):.3f}", lr=f"{lr:.3g}", refresh=False)
        mean_loss = self.processes.sum(total_loss).item() / (steps * self.processes.world_size)
        seconds = time.perf_counter() - started
        if not math.isfinite(mean_loss):
            raise UserError(f"the loss became {mean_loss} in epoch {progress.epoch + 1} of the {name} stage (lr up to {stage.lr:g}); "
                            f"lower {name}.lr or lengthen {name}.lr_peak_epoch; the last good epoch is in checkpoints/last.pth")
        self.processes.average_buffers(self.network)
        validation_started = time.perf_counter()
        metrics = evaluate(self.predict(), self.network.codebook)
        return {"loss": mean_loss, "lr": lr, "resolution": resolution, "images_per_second": steps * config.training.batch_size / seconds,
                "train_seconds": seconds, "val_seconds": time.perf_counter() - validation_started, **metrics}

    def predict(self):
        return predict(self.network, self.val_loader, self.processes, flip=self.config.validation.lr_tta, autocast=self.autocast,
                       num_classes=self.train_manifest.num_classes)

    def suffixed(self, metric):
        return metric + ("_flip" if self.config.validation.lr_tta else "")

    def headline(self, stage):
        return self.suffixed(HEADLINE[stage])

    def _save(self, name, state):
        if self.run_folder:
            self.run_folder.save(name, state)

    def _save_last(self, optimizer, scaler):
        self._save("last", {"network": self.network.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
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
