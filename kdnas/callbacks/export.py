"""A Lightning callback that exports the trained models as Hugging Face folders."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from kdnas.exports import export
from kdnas.modules.base import ExportingModule

log = logging.getLogger(__name__)


class ExportModels(L.Callback):
    """Exports each of the module's models that has not diverged, with the tokenizer, after the final validation.

    Args:
        folder: the folder of a single model; several models go to numbered folders in it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_validation_end(self, trainer: L.Trainer, module: ExportingModule) -> None:
        if trainer.state.fn != TrainerFn.VALIDATING or not trainer.is_global_zero:
            return
        models = list(module.exports.values())
        for i, model in enumerate(models):
            if i in module.diverged:
                continue
            folder = self.folder if len(models) == 1 else self.folder / str(i)
            written = export(model, module.tokenizer, folder, module.about, module.results[i])
            figures = ", ".join(f"{name} {value:.4f}" for name, value in module.results[i].items())
            log.info("wrote %s (its README.md says how to load it); held out: %s", written, figures)
