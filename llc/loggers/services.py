"""Loggers that hand the numbers to a program beside llc, which may send them to another machine.

Each takes its settings, such as an address or a key, as that program itself does: from its environment
variables and its own files. Only what a run computes is handed over, and the recipe: not the terminal's
output, nor what else the program could find out about the machine or the code.
"""

import json
import re
import secrets
import time

from llc.errors import UserError
from llc.loggers.base import Logger, numbers, register
from llc.packages import needed

_INIT_SECONDS = 15  # how long wandb may try to reach its server; after the next epoch it tries again
_FINISH_SECONDS = 20  # how long it may upload what is left when a process ends


def _wandb():
    return needed("wandb", "logging.to=wandb", extra="wandb")


@register
class Wandb(Logger):
    """Weights & Biases: a run of the project logging.project, with the run folder's name.

    The step is the global epoch. Its id is kept in the run folder, so a run that resumes continues it.
    """

    name = "wandb"
    files = ("wandb/",)
    sends = True

    def __init__(self, run):
        super().__init__(run)
        run.memory.setdefault("id", secrets.token_hex(8))
        self._wandb, self._open = _wandb(), None
        self._finished = False

    @classmethod
    def check(cls):
        """Raises UserError if wandb is missing, or would send to a server for which it has no key."""
        wandb = _wandb()
        if wandb.setup().settings.mode in ("offline", "disabled"):
            return
        try:
            known = wandb.login(prompt=False)
        except Exception:  # without a network the key cannot be checked; then the logger itself will say so
            return
        if not known:
            raise UserError(
                "logging.to=wandb: wandb has no API key here: run `wandb login` once, or set WANDB_API_KEY; "
                "with WANDB_MODE=offline nothing is sent, and `wandb sync` sends it later"
            )

    def _started(self):
        """The wandb.Run, from its first use on, because starting it may need a network."""
        if self._open is None:
            known = self._wandb.Settings.model_fields
            limits = {"finish_timeout": _FINISH_SECONDS} if "finish_timeout" in known else {}
            settings = self._wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_disable_meta=True,
                x_save_requirements=False,
                init_timeout=_INIT_SECONDS,
                reinit="create_new",  # a run that belongs to a plugin stays its own
                **limits,
            )
            self._open = self._wandb.init(
                project=self.run.project,
                name=self.run.name,
                id=self.run.memory["id"],
                resume="allow",
                dir=str(self.run.folder),
                config=self.run.config,
                allow_val_change=True,
                settings=settings,
            )
        return self._open

    def write(self, lines):
        self._started().log(dict(lines[-1]), step=lines[-1]["global_epoch"], commit=True)

    def finish(self, results):
        for name, value in results.items():
            self._started().summary[f"final/{name}"] = value
        self._finished = True

    def close(self):
        if self._open is not None:
            self._open.finish(exit_code=0 if self._finished else 1)


def _mlflow():
    return needed("mlflow", "logging.to=mlflow", extra="mlflow")


_PER_REQUEST = 100  # parameters that MLflow's log-batch takes at once
_MAX_PARAMETER = 500  # letters of a parameter's value that all versions of its servers take


@register
class MLflow(Logger):
    """MLflow: a run of the experiment logging.project, at the tracking URI that mlflow itself would use.

    The recipe's keys are its parameters, the numbers of each epoch its metrics, with the global epoch as
    step. The run's id is kept in the run folder, so a run that resumes continues it.
    """

    name = "mlflow"
    sends = True

    def __init__(self, run):
        super().__init__(run)
        self._mlflow, self._finished = _mlflow(), False
        self._client = self._mlflow.MlflowClient()
        if "id" not in run.memory:
            run.memory["id"] = self._create()
        else:
            self._client.update_run(run.memory["id"], status="RUNNING")
        if not run.memory.get("has_parameters"):
            self._log_parameters(run.memory["id"])
            run.memory["has_parameters"] = True

    @classmethod
    def check(cls):
        """Raises UserError if mlflow is missing, or cannot use its tracking URI. A server is not asked."""
        mlflow = _mlflow()
        try:
            mlflow.MlflowClient()
        except Exception as error:
            raise UserError(
                f"logging.to=mlflow: mlflow cannot use its tracking URI, {mlflow.get_tracking_uri()}: "
                f"{_first_line(error)}. Set MLFLOW_TRACKING_URI to the address of a server, such as "
                "http://127.0.0.1:5000; a database on this machine needs the whole of mlflow (pip install "
                "mlflow)"
            ) from error

    def _create(self):
        project = self.run.project
        experiment = self._client.get_experiment_by_name(project)
        id = experiment.experiment_id if experiment else self._client.create_experiment(project)
        return self._client.create_run(id, run_name=self.run.name).info.run_id

    def _log_parameters(self, id):
        entities = self._mlflow.entities
        parameters = [
            entities.Param(
                f"{section}.{key}", (value if isinstance(value, str) else json.dumps(value))[:_MAX_PARAMETER]
            )
            for section, keys in self.run.config.items()
            for key, value in keys.items()
        ]
        for first in range(0, len(parameters), _PER_REQUEST):
            self._client.log_batch(id, params=parameters[first : first + _PER_REQUEST])

    def _log(self, values, step):
        now, metric = int(1000 * time.time()), self._mlflow.entities.Metric
        # MLflow accepts no other letters in a name, such as the @ of top1_mhd@8
        metrics = [metric(re.sub(r"[^\w\-. :/]", "_", name), v, now, step) for name, v in values.items()]
        for first in range(0, len(metrics), _PER_REQUEST):
            self._client.log_batch(self.run.memory["id"], metrics=metrics[first : first + _PER_REQUEST])

    def write(self, lines):
        self._log(numbers(lines[-1]), lines[-1]["global_epoch"])

    def finish(self, results):
        self._log({f"final/{name}": value for name, value in results.items()}, 0)
        self._finished = True

    def close(self):
        self._client.set_terminated(self.run.memory["id"], "FINISHED" if self._finished else "KILLED")


def _first_line(error):
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
