"""A Lightning callback that exports the trained models as Hugging Face folders."""

import logging
from pathlib import Path

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from kdnas.models.exports import export
from kdnas.modules.base import ExportingModule

log = logging.getLogger(__name__)


class ExportModels(L.Callback):
    """Exports each of the module's models that has not diverged, with the tokenizer, after the final validation.

    A single model goes to `folder`, several to numbered folders in it, or none if one failed (`all_or_none`).
    """

    def __init__(self, folder: str, all_or_none: bool = False) -> None:
        self.folder, self.all_or_none = Path(folder), all_or_none

    def on_validation_end(self, trainer: L.Trainer, module: ExportingModule) -> None:
        if trainer.state.fn != TrainerFn.VALIDATING or not trainer.is_global_zero:
            return
        models = list(module.exports.values())
        failed = {*module.diverged, *module.lost}
        for i, model in enumerate(models):
            if i in failed or (failed and self.all_or_none):
                continue
            folder = self.folder if len(models) == 1 else self.folder / str(i)
            written = export(model, module.tokenizer, folder, module.about, module.results[i])
            metrics = ", ".join(f"{name} {value:.4f}" for name, value in module.results[i].items())
            log.info("wrote %s (its README.md says how to load it); held out: %s", written, metrics)
