"""Where the numbers of a run go, beside log.jsonl: logging.to names some of these.

base.py                 Logger, and how to add one
local.py                files in the run folder: tensorboard, csv
services.py             programs that other people run: wandb, mlflow
"""

from llc.loggers import local, services  # noqa: F401 (they register their loggers)
from llc.loggers.base import LOGGERS, Logger, Run, numbers, register

__all__ = ["LOGGERS", "Logger", "Run", "numbers", "register"]
