"""A Lightning callback that leaves the trained models behind as Hugging Face folders."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from kdnas.exports import export
from kdnas.modules.base import ExportingModule

log = logging.getLogger(__name__)


class ExportModels(L.Callback):
    """Writes each of the module's `exports`, with its tokenizer, when the final validation ends; none that diverged.

    Args:
        folder: for a single model; several go to numbered folders below it.
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
