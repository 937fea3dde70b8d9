"""Trains: connects the module and its data, resumes from a checkpoint, and calls Lightning's `fit`."""

import logging

import lightning as L
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from kdnas.app.baselines import Baselines, baselines
from kdnas.app.build import connect
from kdnas.app.preflight import Plan
from kdnas.app.resuming import resumable
from kdnas.base.errors import ConfigError, mounted
from kdnas.base.run_folder import note
from kdnas.base.shared import forget
from kdnas.datamodules.base import EncodedDataModule
from kdnas.models.initialisation import KNOWN
from kdnas.modules.base import ExportingModule
from kdnas.modules.distiller import StudentDistiller

LIGHTNINGS = ("`val_check_interval`", "Early stopping conditioned on", "Cannot use `LearningRateMonitor`")
"""The beginnings of Lightning's messages about settings that do not fit the batches, the metrics or the logger."""


def fit(plan: Plan, module: ExportingModule, data: EncodedDataModule) -> Baselines:
    """Trains, from `last.ckpt` if the run's folder holds one; returns what the results are to be compared with.

    On several devices every process runs this; only the first (global rank 0) writes files.

    Raises:
        ConfigError: the settings do not fit the data, or the checkpoint is of another run.
    """
    trainer = plan.trainer
    with mounted("data"):
        data.divide(trainer.global_rank, trainer.world_size)
    trainer.reload_dataloaders_every_n_epochs = int(data.transfer is not None)  # type: ignore[attr-defined]
    if not plan.first:
        logging.getLogger("kdnas").setLevel(logging.WARNING)  # the first process logs for all of them
    last = resumable(plan.output / "last.ckpt", module, data, searching=plan.study is not None)
    if isinstance(module, StudentDistiller) and last is None:
        with plan.profiler.profile("first weights"):
            module.initialise(data.corpus)
            if not plan.study:
                forget(KNOWN)  # which further candidates of a search need
    with plan.profiler.profile("keep outputs"):
        connect(module, data, trainer)
        if isinstance(module, StudentDistiller) and last is None:
            module.fit_terms(data.corpus, trainer.strategy.root_device)
        # In a search, the prepare job has evaluated the teacher for all candidates.
        compared = Baselines() if plan.study else baselines(module, data, trainer.strategy.root_device)
    if plan.first and not plan.study:  # in a search, the study keeps the settings
        note(plan.output, plan.cfg, data.digest)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())
        if isinstance(error, MisconfigurationException) or message.startswith(LIGHTNINGS):
            raise ConfigError(f"trainer: {message}") from error
        raise
    check_time(trainer, plan.cfg.trainer.max_time)
    return compared


def check_time(trainer: L.Trainer, limit: str | None) -> None:
    """Refuses a training that a time limit has ended: it is a failure, and no result with a low reward."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    if any((timer.time_remaining() or 1) <= 0 for timer in timers):
        setting = "callbacks: Timer" if limit is None else f"trainer.max_time={limit}"
        raise ConfigError(
            f"{setting}: time ran out in epoch {trainer.current_epoch + 1}; with more, the same command continues"
        )
