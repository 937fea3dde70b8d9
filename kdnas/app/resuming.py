"""Resumes a run that was stopped: a checkpoint after each epoch, and its checks before it is used."""

import logging
import signal
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from kdnas.base.errors import ConfigError
from kdnas.base.files import reading
from kdnas.datamodules.base import EncodedDataModule
from kdnas.models.checkpoints import read
from kdnas.modules.base import ExportingModule

log = logging.getLogger(__name__)
RESUMED = {"epoch": int, "global_step": int, "loops": dict, "callbacks": dict, "optimizer_states": list}
"""The entries of a checkpoint that Lightning needs to resume."""


class LastCheckpoint(ModelCheckpoint):
    """Saves `last.ckpt` after each epoch; a resumed run that early stopping had ended is not trained further."""

    def __init__(self, output: Path) -> None:
        # Saved at the end of the epoch: from a checkpoint of the validation, Lightning would repeat the epoch.
        super().__init__(output, "last", save_on_train_epoch_end=True, enable_version_counter=False)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        stoppers = [callback for callback in trainer.early_stopping_callbacks if callback.stopped_epoch]
        trainer.should_stop = trainer.should_stop or bool(stoppers)


class LeaveSigterm(L.Callback):
    """Undoes Lightning's listening to SIGTERM, which would end a job of SLURM at its next batch.

    SLURM sends it before it preempts a job or ends one that has run out of time. submitit passes it over, and puts the
    job back into the queue at the signal that is meant for that; a job that has ended by then is not put back.
    """

    def __init__(self) -> None:
        self._before = signal.getsignal(signal.SIGTERM)

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._before)


def resumable(path: Path, module: ExportingModule, data: EncodedDataModule, searching: bool = False) -> str | None:
    """Returns the checkpoint to resume from, if there is one; refuses one that is damaged or of another run.

    With `searching`, the run is a candidate of a search, which begins anew if its checkpoint is damaged.
    """
    if not path.is_file():
        return None
    try:
        saved = read(path, "paths.output")
    except ConfigError as error:
        if not searching:
            raise
        log.warning("%s; this candidate begins anew", error)
        return None
    with reading("paths.output", path, "run", "a whole checkpoint of kdnas, or not there"):
        if missing := [name for name, kind in RESUMED.items() if not isinstance(saved.get(name), kind)]:
            raise ValueError(f"it has no {', '.join(missing)}")
        module.on_load_checkpoint(saved)
    saved_shapes = {name: value.shape for name, value in saved["state_dict"].items()}
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    if saved_shapes != shapes:
        names = sorted(saved_shapes.keys() | shapes.keys())
        odd = next(name for name in names if saved_shapes.get(name) != shapes.get(name))
        raise ConfigError(f"paths.output={path.parent}: holds a run of another model (its {odd} differs)")
    data.first_epoch = saved["epoch"] + 1
    log.info("going on from %s", path)
    return str(path)
