"""Runs networks over the val images after an epoch, and at the end of a run over the train images too."""

from types import MappingProxyType

from llc import progress
from llc.evaluation.metrics import evaluate
from llc.evaluation.predict import encode_all, predict
from llc.precision import autocast_for
from llc.training.build import make_encoding_loader

_NOTHING = MappingProxyType({})


class Validation:
    """Runs networks over the val loader, and over the train images as that crops them.

    Every image of all processes counts once. between_batches() is called before a batch, on all processes
    equally often; what it raises ends the work.
    """

    def __init__(self, config, parts, processes):
        self._config, self._parts, self._processes = config, parts, processes
        autocast, _ = autocast_for(config.training.precision, processes.device)
        self._how = {"flip": config.validation.lr_tta, "autocast": autocast}

    def run(self, engine, between_batches, codes=True):
        """{metric: value} of the engine's network and, with the suffix _ema, of its moving average.

        codes: of llc.evaluation.metrics.evaluate.
        """
        metrics = self._measure(engine.network, between_batches, "validation", codes=codes)
        if engine.ema is not None:
            title = "validation of the moving average"
            metrics |= self._measure(engine.ema.module, between_batches, title, ema=True, codes=codes)
        return metrics

    def encode_train_images(self, network, between_batches):
        """(codes uint8 [n, code_size], labels int64 [n]) of the train images, on every process."""
        loader = make_encoding_loader(self._config, self._parts.train_shards, self._processes)
        batches = self._batches(loader, between_batches, "encoding the train set")
        return encode_all(network, batches, self._processes, **self._how)

    def run_fitted(self, network, learnt, between_batches):
        """{metric: value} of all decoders, those that learnt too. learnt: {decoder: what it learnt}."""
        title = "validation of the fitted decoders"
        return self._measure(network, between_batches, title, learnt=learnt)

    def _measure(self, network, between_batches, title, *, learnt=_NOTHING, ema=False, codes=True):
        predictions = predict(
            network,
            self._batches(self._parts.val_loader, between_batches, title),
            self._processes,
            num_classes=self._parts.num_classes,
            learnt=learnt,
            **self._how,
        )
        return evaluate(predictions, self._parts.num_classes, ema, codes)

    def _batches(self, loader, between_batches, title):
        """The loader's batches, under a progress bar."""

        def batches():
            for number, batch in enumerate(loader):
                # only at batches that every process has, or the processes would wait for each other
                if number < loader.num_shared_batches:
                    between_batches()
                yield batch

        hidden = not self._processes.is_main
        return progress.each(batches(), loader.num_batches, title, "batch", disable=hidden)
