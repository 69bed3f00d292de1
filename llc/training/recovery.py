"""What happens after a NaN or infinite loss: it is reported, and the run fails or skips the batch."""

from llc.errors import UserError
from llc.training.schedules import learning_rate


class NonFinite(Exception):
    """The loss is NaN or infinite on some process; raised on all at the same step."""


def report(config, parts, processes, progress, first):
    """Finds out which samples led to a NaN or infinite loss. All processes must call it.

    first: (batch, loss) of the first such loss of this process, or None. Returns the content of
    non_finite.json, the batches to skip as [global epoch, batch], and a sentence that says what happened. To
    be skipped are the batch and the one before it, because the loss was computed with the weights that the
    one before had updated.
    """
    name = config.stages[progress.stage]
    found = processes.gather_objects(first)
    batch = min((pair[0] for pair in found if pair), default=progress.batch - 1)
    position = progress.global_epoch * parts.steps + batch
    suspects = [list(divmod(at, parts.steps)) for at in (position - 1, position) if at >= 0]
    orders = [parts.train_loader.order(epoch)[number].tolist() for epoch, number in suspects]
    samples = processes.gather_objects([[parts.train_shards.name(i) for i in order] for order in orders])
    losses = {rank: str(pair[1]) for rank, pair in enumerate(found) if pair and pair[0] == batch}
    step = progress.epoch * parts.steps + batch
    lr = learning_rate(config.stage(name), step, parts.steps)
    content = {
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
    what = (
        f"the loss became {next(iter(losses.values()), 'infinite')} at step {step} of the {name} stage "
        f"(epoch {progress.epoch + 1}, batch {batch}, lr {lr:g})"
    )
    return content, suspects, what


def check_allowed(config, progress, what):
    """Raises UserError, which begins with `what`, if the run has skipped as many batches as it may."""
    if progress.num_non_finite >= config.training.skip_non_finite:
        name = config.stages[progress.stage]
        raise UserError(
            f"{what}; checkpoints/last.pth is from before. Lower {name}.lr, lengthen {name}.lr_peak_epoch, "
            f"or skip such batches: training.skip_non_finite={progress.num_non_finite + 1}"
        )
