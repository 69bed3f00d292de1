"""Evaluates a finished run from its packed codes.

    python -m llc.evaluate RUN [--data.val_dataset=val.beton] [--predictions=FILE.npz]     (also under torchrun)
"""
import dataclasses
from pathlib import Path

import numpy as np
import torch

from llc import config as edge
from llc.codebook import health
from llc.data.shards import open_shards
from llc.distributed import Processes
from llc.errors import UserError
from llc.evaluation.classification import evaluate
from llc.evaluation.predict import predict
from llc.training import config as training_config
from llc.training.engine import autocast_for
from llc.training.run_folder import RunFolder
from llc.training.trainer import build_network, make_val_loader


def main(argv):
    words = [w for w in argv if not w.startswith("--")]
    if "--help" in argv or "-h" in argv or len(words) != 1 or argv.index(words[0]) != 0:
        print(__doc__)
        if "--help" in argv or "-h" in argv:
            return
        raise UserError("the run folder comes first, then --key=value")
    run = RunFolder.open(words[0])
    config, options = training_config.read(["--config", str(Path(words[0]) / "config.yaml"), *argv[1:]], description=__doc__,
                                           options={"predictions": "write codes, labels and classes of every image to this .npz"})
    processes = Processes.start(config.dist.timeout_minutes)
    try:
        _evaluate(run, config, processes, options["predictions"])
    finally:
        processes.stop()


def _evaluate(run, config, processes, predictions_file):
    shards = open_shards(config.data.val_dataset)
    manifest = shards.manifest
    stages = [name for name in ("codebook", "instance") if run.checkpoint(name).exists()]
    if not stages:
        raise UserError(f"{run.path}: no stage of this run is finished (checkpoints/codebook.pth, instance.pth)")
    loader = make_val_loader(config, shards, processes)
    autocast, _ = autocast_for(config.training.precision, processes.device)
    suffix = "_flip" if config.validation.lr_tta else ""
    found = {}
    for name in stages:
        state = run.load(name)["network"]
        if len(state["codebook"]) != manifest.num_classes:
            raise UserError(f"{config.data.val_dataset} has {manifest.num_classes} classes, {run.path} was trained on "
                            f"{len(state['codebook'])}")
        network = build_network(dataclasses.replace(config), manifest.num_classes)
        network.load_state_dict(state)
        network.to(processes.device, memory_format=torch.channels_last)
        found[name] = predict(network, loader, processes, flip=config.validation.lr_tta, autocast=autocast,
                              num_classes=manifest.num_classes)
    if not processes.is_main:
        return
    metrics = {name: evaluate(predictions, network.codebook) for name, predictions in found.items()}
    rows = [("class codes", stages[0], "class"), ("MHD", stages[-1], "mhd"), ("ED", stages[-1], "ed")]
    print(f"{run.path}: {manifest.num_samples} images, {config.codes.num_bits} bits"
          + (", left-right flips averaged" if suffix else ""))
    for title, stage, decoder in rows:
        m = metrics[stage]
        line = f"  {title:12s} top-1 {100 * m['top1_' + decoder + suffix]:6.2f} %"
        if decoder != "ed":
            line += f"   top-5 {100 * m['top5_' + decoder + suffix]:6.2f} %"
        extra = {"class": "", "mhd": f"   tied for nearest {100 * m['tied_mhd' + suffix]:.2f} %",
                 "ed": f"   no class {100 * m['none_ed' + suffix]:.2f} %"}[decoder]
        print(line + extra)
    print(f"  {health(network.codebook)}")
    if predictions_file:
        last = found[stages[-1]][suffix]
        np.savez(predictions_file, **{k: v.cpu().numpy() for k, v in vars(last).items()})


if __name__ == "__main__":
    edge.run(main)
