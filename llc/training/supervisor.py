"""What happens between two steps, on all processes alike: signals, checkpoints, NaN or infinite losses."""

from llc.distributed import Agreement
from llc.progress import say
from llc.training import recovery
from llc.training.interruption import LossWatch, Stopped
from llc.training.recovery import NonFinite


class Supervisor:
    """Watches a run between its steps. watch: looks at each loss; signals: StopSignals; saver: Saver."""

    def __init__(self, config, parts, state, saver, signals, processes):
        self._config, self._parts, self._state, self._saver = config, parts, state, saver
        self._signals, self._processes = signals, processes
        self._agreement, self.watch = Agreement(processes), LossWatch()

    def between_steps(self, engine, validating=False):
        """Reacts to a signal, a NaN or infinite loss, a failed compiler, and the time for a checkpoint.

        All processes do the same at the same step. Raises NonFinite, or Stopped.
        """
        self._saver.check()
        save, stop, non_finite, eager = self._agreement.exchange(
            not validating and self._saver.is_due(),
            bool(self._signals.received),
            self.watch.found is not None,
            engine.compiler_failed,
        )
        if eager:
            engine.run_eagerly()
        if non_finite:
            raise NonFinite
        if stop:
            self.save_last(engine)
            self._stop()
        if save and not validating:
            self.save_last(engine)

    def after_the_stages(self):
        """Reacts to a signal, as `between_steps`. The state is that of last.pth. Raises Stopped."""
        self._saver.check()
        _, stop, _, _ = self._agreement.exchange(False, bool(self._signals.received), False, False)
        if stop:
            self._stop()

    def _stop(self):
        self._saver.wait()
        if self._saver.run_folder:
            cause = self._signals.received or "a signal to another process"
            self._say(f"stopped by {cause}; continue with --resume={self._saver.run_folder.path}")
        raise Stopped

    def save_last(self, engine):
        """Writes last.pth in the background. engine: None between stages. Raises NonFinite."""
        self._saver.save_last(self._state.as_dict(engine))

    def recover(self):
        """After NonFinite: returns to last.pth and skips what led to it, or raises UserError."""
        config, saver, processes = self._config, self._saver, self._processes
        before = self._state.progress
        self._agreement.forget()
        self.watch.look(wait=True)
        report, suspects, what = recovery.report(config, self._parts, processes, before, self.watch.found)
        path = processes.on_main(lambda: saver.run_folder.save_non_finite(report))
        what += f"; {path} names the batch's samples"
        recovery.check_allowed(config, before, what)
        saver.wait()
        self._state.restore(processes.on_main(lambda: saver.run_folder.load_last()))
        now = self._state.progress
        now.left_out, now.num_non_finite = before.left_out + suspects, before.num_non_finite + 1
        self.watch = LossWatch()
        self._say(
            f"warning: {what}. {now.num_non_finite} of {config.training.skip_non_finite}: returns to step "
            f"{now.batch} of epoch {now.epoch + 1} and skips batch {report['batch']} and the one before it"
        )

    def _say(self, text):
        say(text, self._processes)
