"""Validation after an epoch, of the network and of its moving average."""

from llc import progress
from llc.evaluation.metrics import evaluate
from llc.evaluation.predict import predict
from llc.precision import autocast_for


class Validation:
    """Runs networks over the val loader."""

    def __init__(self, config, parts, processes):
        self._parts, self._processes, self._flip = parts, processes, config.validation.lr_tta
        self._autocast, _ = autocast_for(config.training.precision, processes.device)

    def run(self, engine, between_batches):
        """{metric: value} of the engine's network and, with the suffix _ema, of its moving average.

        Every image of all processes counts once. between_batches() is called before a batch, on all processes
        equally often; what it raises ends the validation.
        """
        metrics = self._run(engine.network, between_batches)
        if engine.ema is not None:
            metrics |= self._run(engine.ema.module, between_batches, ema=True)
        return metrics

    def _run(self, network, between_batches, ema=False):
        parts = self._parts

        def batches():
            for number, batch in enumerate(parts.val_loader):
                # only at batches that every process has, or the processes would wait for each other
                if number < parts.num_shared_val_batches:
                    between_batches()
                yield batch

        title = "validation of the moving average" if ema else "validation"
        hidden = not self._processes.is_main
        predictions = predict(
            network,
            progress.each(batches(), parts.num_val_batches, title, "batch", disable=hidden),
            self._processes,
            flip=self._flip,
            autocast=self._autocast,
            num_classes=parts.num_classes,
        )
        return evaluate(predictions, parts.num_classes, ema)
