"""Trains the two stages and evaluates.

    torchrun --nproc_per_node=8 train_llc.py --config rn50_configs/llc_20bit.yaml \
        --data.train_dataset=train.beton --data.val_dataset=val.beton
    python train_llc.py --resume=runs/NAME [--config ... to change nothing but the paths]
"""
from pathlib import Path

from llc import config as edge
from llc.distributed import Processes
from llc.training import config as training_config
from llc.training.run_folder import RunFolder
from llc.training.trainer import Trainer


def main(argv):
    resume = next((w.partition("=")[2] or argv[i + 1] for i, w in enumerate(argv) if w.split("=")[0] == "--resume"), None)
    if resume:  # the run's own configuration comes first; flags may override it
        run = RunFolder.open(resume)
        argv = ["--config", str(Path(resume) / "config.yaml"), *argv]
    config, _ = training_config.read(argv, description=__doc__, options={"resume": "continue this run folder"})
    processes = Processes.start(config.dist.timeout_minutes)
    try:
        state = run.load("last") if resume else None
        if not resume:
            run = RunFolder.create(config.logging.folder, config.logging.name) if processes.is_main else None
        elif processes.is_main:
            run.drop_log_after(state["progress"]["global_epoch"])
        if processes.is_main:
            config.save(run.path / "config.yaml")
        Trainer(config, run if processes.is_main else None, processes, state).train()
    finally:
        processes.stop()


if __name__ == "__main__":
    edge.run(main)
