"""Builds the LightningModule and the data module of a training, and connects them."""

import json

import lightning as L

from kdnas.app.preflight import Plan, architecture
from kdnas.base.config import instantiate, plain
from kdnas.base.errors import mounted
from kdnas.base.identity import sources, stamp
from kdnas.base.screen import activity
from kdnas.base.shared import shared
from kdnas.datamodules.base import EncodedDataModule
from kdnas.models.compatibility import check_fit
from kdnas.modules.base import ExportingModule
from kdnas.modules.distiller import StudentDistiller
from kdnas.training.used_embeddings import train_used_rows


def build(plan: Plan) -> tuple[ExportingModule, EncodedDataModule]:
    """Builds the module and the data module, checks that they fit each other, and reads the data."""
    cfg = plan.cfg
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    students = {}
    if cfg.architectures is not None:
        students["architectures"] = [architecture(values) for values in cfg.architectures]
        students["outputs"] = instantiate(cfg.get("outputs"))
    module = instantiate(cfg.module, **students)
    # Read and tokenized once for all candidates of a process. The tokenizer is the one of the module's model.
    settings, tokenizer = json.dumps(plain(cfg.data), sort_keys=True), module.tokenizer.name_or_path
    key = (settings, stamp(sources(cfg)), cfg.module.get("teacher"), tokenizer)
    data = shared("data", key, lambda: instantiate(cfg.data, tokenizer=module.tokenizer))
    data.trainer, data.first_epoch = None, 0
    module.check(masked=data.masking is not None)
    source = f"checkpoint={cfg.checkpoint}" if cfg.get("checkpoint") else f"teacher.path={cfg.teacher.path}"
    check_fit(module.source_config, module.tokenizer, source, data.texts_per_row, data.max_length)
    if isinstance(module, StudentDistiller):
        student = module.trainees[0].model.config
        if student.model_type != module.teacher_config.model_type:
            source = f"student.family={student.model_type}"
            check_fit(student, module.tokenizer, source, data.texts_per_row, data.max_length, "student")
        if plan.costs:
            with mounted("latency"):
                plan.costs.protocol.check(module.teacher_config)
                plan.costs.protocol.check(student)
    if isinstance(module, StudentDistiller) and not plan.study:  # in a search, the prepare job has checked it
        module.check_teacher()
    data.transfer_epochs = module.transfer_epochs
    with activity("reading the data"), mounted("data"):
        data.setup("fit")
    return module, data


def connect(module: ExportingModule, data: EncodedDataModule, trainer: L.Trainer) -> None:
    """Sets what depends on the rows: class names, teacher outputs, and which word embeddings are trained."""
    module.name_classes(data.class_names)
    masked = data.masking is not None  # masking changes the rows in every epoch, and adds words that are in no row
    if isinstance(module, StudentDistiller):
        module.open_teacher(trainer, None if masked else data.corpus)
    for model in () if masked else module.exports.values():
        train_used_rows(model, data.corpus.vocabulary)
