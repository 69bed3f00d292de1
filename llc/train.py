"""Trains the stages and evaluates.

    torchrun --nproc_per_node=8 -m llc.train --config rn50_configs/llc_20bit.yaml \
        --data.train_dataset=train.beton --data.val_dataset=val.beton
    python -m llc.train --config ... --dry_run
        checks everything, prints the plan, and writes nothing
    torchrun ... -m llc.train --config ... --logging.name=NAME --resume=auto
        starts the run or resumes it
    python -m llc.train --resume=runs/NAME
        resumes it; --config may change paths

--config finds the recipes that come with llc, in rn50_configs, rn18_configs and backbone_configs, from any
folder. In a clone of the project, `train_llc.py` is the same command.

At the end the train set is encoded once, and the decoders that learn from its codes are fitted and measured
(validation.fit_decoder=0 leaves this out).

After SIGTERM, SIGINT (Ctrl-C) or SIGUSR1 the run writes a checkpoint after the current step and exits with
status 75 (torchrun, which passes on the first two, exits with 1). Status 0: finished, also if --resume=auto
finds that the run was finished before; 2: an error, which is printed.
"""

import contextlib
import dataclasses
import sys
from pathlib import Path

from llc import config as edge
from llc import environment
from llc.distributed import Processes
from llc.errors import UserError
from llc.options import option
from llc.training import config as training_config
from llc.training import delivery, plan, results
from llc.training.interruption import EXIT_STATUS, Stopped
from llc.training.run_folder import RunFolder
from llc.training.state import Progress
from llc.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Options:
    """How a run starts."""

    resume: str = option("", help="resume this run folder; auto: start or resume logging.folder/logging.name")
    resume_anyway: bool = option(False, help="resume although the configuration or the data has changed")
    dry_run: bool = option(False, help="print what the run would do, check it, and write nothing")


def main(argv):
    source = edge.value_of("resume", argv)
    if source and source != "auto":  # the run's own configuration comes first; flags may override it
        argv = ["--config", str(RunFolder.open(source).path / "config.yaml"), *argv]
    config, options = training_config.read(argv, description=__doc__, options=Options)
    source, anyway = options.resume or None, options.resume_anyway
    if options.dry_run:
        if environment.rank() == 0:
            print(plan.describe(config, environment.world_size(), source), flush=True)
        return
    processes = Processes.start(
        config.dist.timeout_minutes, config.training.deterministic, config.dist.backend
    )
    with processes.watched(), contextlib.ExitStack() as closing:
        run = None

        def open_run():
            nonlocal run
            delivery.check(config.logging.to)
            run, state = _open_run(config, source)
            closing.callback(run.close)
            finished = state is not None and run.has_results and _is_finished(state, len(config.stages))
            if finished:
                print(f"{run.path} is finished", flush=True)
                progress = Progress.of(state, len(config.stages))
                delivery.complete(run.path, config, progress.lines, results.final_figures(config, progress))
            return state, finished

        state, finished = processes.on_main(open_run)
        status = 0
        if not finished:
            trainer = Trainer(config, run, processes, state, anyway)
            if run:
                config.save(run.path / "config.yaml")
            try:
                trainer.train()
            except Stopped:
                status = EXIT_STATUS
        processes.stop()
    if status:
        sys.exit(status)


def _is_finished(state, num_stages):
    try:
        return Progress.of(state, num_stages).stage == num_stages
    except (KeyError, TypeError, ValueError):
        return False  # the trainer says what is wrong with it


def _open_run(config, source):
    """(RunFolder, state to resume from or None). `source`: None, auto, or a run folder."""
    folder, name = config.logging.folder, config.logging.name
    if source == "auto":
        if not name:
            raise UserError("--resume=auto needs the name of the run: give it as --logging.name=NAME")
        source = Path(folder) / name
        if not source.exists():
            source = None
    if source is None:
        return RunFolder.create(folder, name), None
    run = RunFolder.open_to_continue(source)
    return run, run.load_last()


if __name__ == "__main__":
    edge.run(main)
