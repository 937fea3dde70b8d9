"""One run, which `train.py` starts, and every job of `search.py`: it does what its kind of job does."""

import gc
import logging
import warnings
from functools import cache

import datasets
import optuna
import transformers
from omegaconf import DictConfig

from kdnas.app.jobs import reporting
from kdnas.app.kinds import staged, work_of
from kdnas.base.screen import activity, aside
from kdnas.search.job import Job


def run(cfg: DictConfig) -> dict[str, float]:
    """Runs one config and returns the first student's held-out metrics; a ConfigError is bad input."""
    job = Job.of(cfg)
    work, cfg = work_of(cfg, job), staged(cfg, job)
    quieten()
    keep_lasting()
    try:
        with aside(bool(job.trials)), activity(job.title or cfg.title):  # a search logs its trials itself
            if not job.trials:
                return work(cfg, job, None)
            with reporting(cfg, job) as study:
                return {} if study is None else work(cfg, job, study)
    finally:
        gc.collect()  # frees the memory for the next candidate of this process


@cache
def keep_lasting() -> None:
    """Excludes the objects that exist before the first run from garbage collection: they are many, and all stay."""
    gc.collect()
    gc.freeze()


def quieten() -> None:
    """Silences progress bars, log lines and warnings of libraries that do not help a user."""
    logging.raiseExceptions = False  # on a full disk, logging fails too
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it raises its errors as well as logging them
    datasets.disable_progress_bars()
    for part in ("fabric", "pytorch"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    for message in (
        "exists and is not empty",
        "LeafSpec",
        "smaller than the logging interval",
        "have many workers",
        "in the buffer",
        "The `srun` command is available",
        "`broadcast_buffers` is deprecated",  # its successor is newer than our oldest torch
    ):
        warnings.filterwarnings("ignore", f".*{message}")
