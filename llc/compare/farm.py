"""Runs trainings in processes of their own, several at a time, with the cores and GPUs divided among them."""

import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import torch

from llc import environment, plugins
from llc.compare.runs import DIVERGED, FAILED, FINISHED

STOP_SECONDS = 120.0  # how long trainings may take to write a checkpoint when they are stopped
NON_FINITE_STATUS = 2  # of llc.train when it gives up, as after any other error


def run_all(comparison, runs, jobs):
    """Runs what is not finished, `jobs` at a time. However this ends, it leaves no training behind."""
    outcomes = {run: comparison.outcome(run) for run in runs}
    waiting = collections.deque(
        run for run, outcome in outcomes.items() if outcome is None or outcome.status == FAILED
    )
    num_done = len(runs) - len(waiting)
    print(f"{len(runs)} runs, {num_done} of them done before", flush=True)
    free, active = list(range(jobs)), {}
    try:
        while waiting or active:
            while waiting and free:
                run, slot = waiting.popleft(), free.pop(0)
                active[slot] = run, _start(comparison, run, slot, jobs), time.monotonic()
            time.sleep(0.05)
            for slot, (run, process, started) in list(active.items()):
                if process.poll() is None:
                    continue
                del active[slot]
                free.append(slot)
                num_done += 1
                outcome = _ended(comparison, run, process.returncode)
                said = outcome.message
                if outcome.status == FINISHED:
                    said = f"{run.method.headline} {100 * comparison.headline(run, outcome.metrics):.2f} %"
                print(
                    f"{num_done}/{len(runs)} {run.phase} {run.method.name} {run.title}: {outcome.status}, "
                    f"{said} ({time.monotonic() - started:.0f} s)",
                    flush=True,
                )
    finally:
        _stop([process for _, process, _ in active.values()])


def command(run):
    """The words that train a run or continue it, without Python's."""
    return ["-m", "llc.train", *plugin_words(), *run.words, "--resume=auto"]


def plugin_words():
    """The plugins of this process as flags, for the processes that it starts."""
    return [f"--plugin={name}" for name in plugins.loaded]


def divided(slot, jobs):
    """({variable: value}, threads) of the training in slot `slot` of `jobs`: its cores and its GPU."""
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    # The trainer keeps to OMP_NUM_THREADS, and the loader divides the cores by LOCAL_WORLD_SIZE, as if the
    # other trainings were processes of its own.
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "LOCAL_WORLD_SIZE": str(jobs),
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }
    num_gpus = torch.cuda.device_count()
    if num_gpus > 1:
        visible = environment.cuda_visible_devices() or ",".join(map(str, range(num_gpus)))
        variables["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot % num_gpus]
    return variables, threads


def end_like_ctrl_c():
    """Has SIGTERM and SIGHUP raise KeyboardInterrupt, so that the trainings are stopped then too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup has SIGHUP ignored
            signal.signal(number, signal.default_int_handler)


def _start(comparison, run, slot, jobs):
    variables, threads = divided(slot, jobs)
    workers = [f"--data.num_workers={threads}"] if run.config.data.num_workers == -1 else []
    with open(comparison.log(run), "ab") as log:
        return subprocess.Popen(
            [sys.executable, *command(run), *workers],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment.of_child(**variables),
            # A group of its own, so that Ctrl-C reaches it once, from _stop, and not from the terminal too.
            start_new_session=True,
        )


def _ended(comparison, run, status):
    """Writes down how a run ended, if not well; returns its Outcome."""
    comparison.keep(run)  # the record of an earlier attempt
    folder = comparison.folder(run)
    if not (folder / "results.csv").exists():
        message = _last_words(comparison.log(run)) or "it printed nothing"
        if (
            status == NON_FINITE_STATUS
            and message.startswith("the loss ")
            and (folder / "checkpoints" / "non_finite.json").exists()
        ):
            comparison.keep(run, status=DIVERGED, message=message)
        else:
            comparison.keep(run, status=FAILED, message=f"exit status {status}: {message}")
    return comparison.outcome(run)


def _stop(processes):
    """Has trainings write a checkpoint and end; after STOP_SECONDS, or a second Ctrl-C, they are killed."""
    processes = [process for process in processes if process.poll() is None]
    if not processes:
        return
    print(
        f"stopping {len(processes)} training(s), which write a checkpoint first; "
        "the same command continues them",
        file=sys.stderr,
        flush=True,
    )
    try:
        for process in processes:
            process.terminate()
        end = time.monotonic() + STOP_SECONDS
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _last_words(path):
    """The last error that a training printed, or else its last line; on one line."""
    text = re.split(r"[\r\n]", path.read_bytes()[-20_000:].decode("utf-8", "replace"))
    lines = [line.strip() for line in text if line.strip()]
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    return " ".join(lines[errors[-1] :][:5]).removeprefix("error: ") if errors else "".join(lines[-1:])
