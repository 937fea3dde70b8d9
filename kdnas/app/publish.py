"""Publishes what a training leaves: the best weights as a checkpoint and a Hugging Face folder, and the results."""

import logging
from pathlib import Path

from kdnas.app.baselines import Baselines
from kdnas.app.preflight import Plan
from kdnas.base.files import write_json
from kdnas.base.profiler import TimeTable
from kdnas.base.run_folder import RESULTS
from kdnas.datamodules.base import EncodedDataModule
from kdnas.modules.base import ExportingModule
from kdnas.modules.distiller import StudentDistiller
from kdnas.training.used_embeddings import restore_tables

log = logging.getLogger(__name__)


def publish(plan: Plan, module: ExportingModule, data: EncodedDataModule, compared: Baselines) -> dict[str, float]:
    """Validates and writes the best weights, which callbacks export and report; returns the first model's metrics.

    A DivergedError removes the checkpoints of a model that has diverged, so that other settings can use the folder.
    """
    output, trainer = plan.output, plan.trainer
    module.best.restore()
    for model in module.exports.values():
        restore_tables(model)
    keeps = plan.cfg.paths.export is not None and len(module.diverged) < len(module.trainees)
    if keeps:
        trainer.save_checkpoint(output / "best.ckpt", weights_only=True)
    trainer.validate(module, datamodule=data, verbose=False)
    if not plan.study:
        refuse_failed(module, output)
    if plan.first:
        compared.warn(module.results)
        if len(module.diverged) < len(module.trainees):
            write_json(output / RESULTS, module.results)
        if keeps:
            log.info("wrote %s, %s and results.json beside them", output / "best.ckpt", output / "last.ckpt")
        else:
            (output / "last.ckpt").unlink(missing_ok=True)
        if isinstance(plan.profiler, TimeTable):
            path = output / "profile.csv"
            log.info("where the time went (%s):\n%s", path, plan.profiler.write(path))
    data.trainer = None  # the next run may reuse the data module, and needs the memory that this Trainer holds
    return dict(module.results[0])


def refuse_failed(module: ExportingModule, output: Path) -> None:
    """Refuses a training of which a model ran out of memory or diverged."""
    if isinstance(module, StudentDistiller):
        module.refuse_lost()
    if module.diverged:
        for name in ("last.ckpt", "best.ckpt"):
            (output / name).unlink(missing_ok=True)
    module.refuse_diverged()
