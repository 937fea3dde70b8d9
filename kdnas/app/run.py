"""One run: builds the data module, the LightningModule and the Trainer from a config, fits, and writes the results.

`train.py` and every job of `search.py` call `run`. Scoring a candidate is an ordinary distillation with two more
callbacks and the settings of its search stage.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
import warnings
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import lightning as L
import optuna
import transformers
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig, OmegaConf, open_dict

from kdnas.app.again import measure_again
from kdnas.app.baselines import Baselines, baselines
from kdnas.app.fitting import bar, check_time, fit
from kdnas.app.jobs import candidates, open_study
from kdnas.app.preflight import architecture, check, staged
from kdnas.app.resuming import LastCheckpoint, resumable
from kdnas.base.config import instantiate, override, plain
from kdnas.base.errors import ConfigError, mounted
from kdnas.base.identity import sources, stamp
from kdnas.base.locks import alone
from kdnas.base.profiler import TimeTable
from kdnas.base.run_folder import (
    RESULTS,
    OtherRunError,
    at_work,
    earlier_precision,
    earlier_results,
    note,
    withdraw,
    write_prepared,
    write_results,
)
from kdnas.base.screen import activity, aside, board
from kdnas.base.shared import shared
from kdnas.callbacks import (
    ControllerUpdate,
    ExportModels,
    LatencyBenchmark,
    LeaveSigterm,
    QuietSteps,
    SeedSteps,
)
from kdnas.datamodules.base import EncodedDataModule
from kdnas.models.compatibility import check_fit
from kdnas.models.loading import check_activation, load_config
from kdnas.modules.base import DivergedError, ExportingModule
from kdnas.modules.distiller import StudentDistiller
from kdnas.training.trainer import make_trainer, on_slurm
from kdnas.training.used_embeddings import restore_tables, train_used_rows

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> dict[str, float]:
    """Runs one config and returns the first student's held-out metrics.

    Raises:
        ConfigError: bad input, before anything is trained.
    """
    stages = cfg.search.stages
    if cfg.stage not in (stages or ()):
        raise ConfigError(f"stage={cfg.stage}: must be one of {', '.join(stages or ())}")
    quieten()
    keep_lasting()
    # A search prints its own lines about its candidates, and about the prepare job when that runs in another process.
    apart = bool(cfg.search.trials) or (cfg.stage == "prepare" and not board.narrated)
    try:
        with aside(apart), activity(cfg.title):
            if cfg.search.trials:
                with candidates(cfg) as left:
                    return attempt(cfg)[0] if left else {}
            results, fresh = attempt(cfg)
            if not fresh and HydraConfig.initialized():
                withdraw()
            return results
    finally:
        gc.collect()  # frees the memory for the next candidate of this process


@cache
def keep_lasting() -> None:
    """Excludes the objects that exist before the first run from garbage collection: they are many, and all stay."""
    gc.collect()
    gc.freeze()


def attempt(cfg: DictConfig) -> tuple[dict[str, float], bool]:
    """Checks a config, trains a missing teacher, and runs the work of the config's stage.

    Returns:
        The held-out metrics, and whether they were computed just now, not read from an earlier run.
    """
    checked = [staged(cfg, name) for name in (("mini", "full") if cfg.stage == "prepare" else ())]
    cfg = staged(cfg, cfg.stage)
    for one in (cfg, *checked):
        check(one)
    work = {"prepare": prepare, "latency": remeasure}.get(cfg.stage, train)
    own = work is train and not cfg.search.trials and make_trainer(cfg, logger=False).is_global_zero
    with at_work(Path(cfg.paths.output)) if own else nullcontext():  # a search job has its own locks
        if not cfg.search.trials:  # in a search, the prepare job has made the teacher
            ensure_teacher(cfg)
        settle_precision(cfg)
        if results := finished(cfg):
            return results, False
        return work(cfg)


def settle_precision(cfg: DictConfig) -> None:
    """Replaces precision `auto`: in a search by the prepare job's choice, else by the one that the run began with."""
    if cfg.trainer.precision != "auto" or cfg.stage == "prepare":
        return
    if cfg.search.trials:
        cfg.trainer.precision = open_study(cfg).precision
    else:
        chosen = make_trainer(cfg, logger=False).precision
        cfg.trainer.precision = earlier_precision(Path(cfg.paths.output)) or chosen


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


def finished(cfg: DictConfig, rows: str | None = None) -> dict[str, float] | None:
    """Returns the first model's results if the same run has finished in its folder before; None in a search's jobs.

    Args:
        rows: the digest of the data, once it has been read.
    """
    if cfg.stage == "prepare" or cfg.search.trials:
        return None
    results = earlier_results(Path(cfg.paths.output), cfg, rows)
    if results is None or (cfg.paths.export and not Path(cfg.paths.export).is_dir()):
        return None
    figures = ", ".join(f"{name} {value:.4f}" for name, value in results[0].items())
    log.info("%s: already finished in %s: %s", cfg.title, cfg.paths.output, figures)
    return results[0]


def build(cfg: DictConfig) -> tuple[ExportingModule, EncodedDataModule, LatencyBenchmark | None]:
    """Builds the module, the data module and (for distillation) the latency callback of a config."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    latency = instantiate(cfg.get("latency"))
    students = {}
    if cfg.architectures is not None:
        students["architectures"] = [architecture(values) for values in cfg.architectures]
        students["outputs"] = instantiate(cfg.get("outputs"))
        if cfg.stage != "full":  # one teacher cache serves all candidates
            students["depths"] = plain(cfg.space).get("num_hidden_layers", [])  # also depths that constraints exclude
    module = instantiate(cfg.module, **students)
    # Read and tokenized once for all candidates of a process. The tokenizer is the one of the module's model.
    key = (
        json.dumps(plain(cfg.data), sort_keys=True),
        stamp(sources(cfg)),
        cfg.module.get("teacher"),
        module.tokenizer.name_or_path,
    )
    data = shared("data", key, lambda: instantiate(cfg.data, tokenizer=module.tokenizer))
    data.trainer, data.first_epoch = None, 0
    module.check(masked=data.masking is not None)
    source = f"checkpoint={cfg.checkpoint}" if cfg.get("checkpoint") else f"teacher.path={cfg.teacher.path}"
    check_fit(module.source_config, module.tokenizer, source, data.texts_per_row, data.max_length)
    if latency and isinstance(module, StudentDistiller):
        latency.protocol.check(module.teacher_config)
    if isinstance(module, StudentDistiller) and not cfg.search.trials:  # in a search, the prepare job has checked it
        module.check_teacher()
    data.transfer_epochs = module.transfer_epochs
    return module, data, latency


def prepare(cfg: DictConfig) -> tuple[dict[str, float], bool]:
    """Makes and checks what all jobs of a search need, before the first of them: teacher outputs, precision, chance."""
    space = instantiate(cfg.space)
    for activation in space.dimensions["hidden_act"]:
        check_activation(activation)
    cfg = staged(cfg, "mini")
    cfg.architectures = [space.example.to_dict()]
    module, data, latency = build(cfg)
    with activity("reading the data"), mounted("data"):
        data.setup("fit")
    if latency is None or not isinstance(module, StudentDistiller):
        raise ConfigError(f"module._target_={cfg.module._target_}: a search distils; must be a StudentDistiller")
    with activity("measuring the teacher's latency"):
        teacher = latency.cost(module.teacher_config)
    trainer = make_trainer(cfg, logger=False)
    settle(module, data, trainer)
    found = baselines(module, data, trainer.strategy.root_device)
    facts: dict[str, Any] = {"precision": trainer.precision, "rows": data.digest, "teacher": teacher.to_dict()}
    facts |= {"teacher_metrics": found.teacher, "chance": found.chance, "held_out_rows": len(data.validation or ())}
    write_prepared(Path(cfg.paths.output), facts)
    return {}, True


def remeasure(cfg: DictConfig) -> tuple[dict[str, float], bool]:
    """Repeats the latency measurements that a search made on a busy host."""
    latency = instantiate(cfg.latency)
    for stage in ("mini", "full"):
        study = open_study(OmegaConf.merge(cfg, {"stage": stage}))  # type: ignore[arg-type]
        measure_again(study, load_config(cfg.teacher.path), latency.cost, instantiate(cfg.reward))
    return {}, True


def train(cfg: DictConfig) -> tuple[dict[str, float], bool]:
    """Fits, from `last.ckpt` if the folder holds one; then validates, exports and reports the best weights.

    On several devices every process runs this; only the first (global rank 0) writes files.
    """
    output, export = Path(cfg.paths.output), cfg.paths.export
    profiler = TimeTable() if cfg.profile else PassThroughProfiler()
    with profiler.profile("models and data"):
        module, data, latency = build(cfg)
        with activity("reading the data"), mounted("data"):
            data.setup("fit")
    if results := finished(cfg, data.digest):
        return results, False
    callbacks: list[L.Callback] = [*bar(cfg), QuietSteps(), SeedSteps(cfg.seed), LastCheckpoint(output)]
    if on_slurm():
        callbacks.append(LeaveSigterm())
    if latency:
        callbacks.append(latency)
    if export:
        callbacks.append(ExportModels(export, all_or_none=not cfg.search.trials))
    if cfg.search.trials and latency:  # `prepare` refuses a search without `latency`
        study = open_study(cfg, controller=instantiate(cfg.controller)(seed=cfg.seed))
        callbacks.append(ControllerUpdate(study, cfg.search.trials, instantiate(cfg.reward), latency, export))
    settings: dict[str, Any] = {} if module.epochs is None else {"max_epochs": module.epochs}
    settings |= {"profiler": profiler} if cfg.profile else {}
    settings["reload_dataloaders_every_n_epochs"] = int(data.transfer is not None)
    trainer = make_trainer(cfg, callbacks=callbacks, logger=instantiate(cfg.get("logger")) or False, **settings)
    with mounted("data"):
        data.divide(trainer.global_rank, trainer.world_size)
    first = trainer.is_global_zero
    if not first:
        logging.getLogger("kdnas").setLevel(logging.WARNING)  # the first process logs for all of them
    with profiler.profile("keep outputs"):
        settle(module, data, trainer)
        # In a search, the prepare job has evaluated the teacher for all candidates.
        device = trainer.strategy.root_device
        compared = Baselines() if cfg.search.trials else baselines(module, data, device)
    last = resumable(output / "last.ckpt", module, data, searching=bool(cfg.search.trials))
    if first and not cfg.search.trials:  # in a search, the study keeps the settings
        note(output, cfg, data.digest)
    fit(trainer, module, data, last)
    check_time(trainer, cfg)
    module.best.restore()
    for model in module.exports.values():
        restore_tables(model)
    failed = len(module.diverged) == len(module.trainees)
    if export and not failed:
        trainer.save_checkpoint(output / "best.ckpt", weights_only=True)
    trainer.validate(module, datamodule=data, verbose=False)
    if isinstance(module, StudentDistiller) and not cfg.search.trials:
        module.refuse_lost()
    if not cfg.search.trials:
        refuse_diverged(module, output)
    if first:
        compared.warn(module.results)
        if not failed:
            write_results(output / RESULTS, module.results)
        if export and not failed:
            log.info("wrote %s, %s and results.json beside them", output / "best.ckpt", output / "last.ckpt")
        else:
            (output / "last.ckpt").unlink(missing_ok=True)
        if isinstance(profiler, TimeTable):
            path = output / "profile.csv"
            log.info("where the time went (%s):\n%s", path, profiler.write(path))
    data.trainer = None  # the next run may reuse the data module, and needs the memory that this Trainer holds
    return dict(module.results[0]), True


def refuse_diverged(module: ExportingModule, output: Path) -> None:
    """Refuses a training that has diverged, and removes its checkpoints so that other settings can use the folder."""
    if module.diverged:
        for name in ("last.ckpt", "best.ckpt"):
            (output / name).unlink(missing_ok=True)
    module.refuse_diverged()


def settle(module: ExportingModule, data: EncodedDataModule, trainer: L.Trainer) -> None:
    """Sets what depends on the rows: class names, teacher outputs, and which word embeddings are trained."""
    module.name_classes(data.class_names)
    masked = data.masking is not None  # masking changes the rows in every epoch, and adds words that are in no row
    if isinstance(module, StudentDistiller):
        module.open_teacher(trainer, None if masked else data.corpus)
    for model in () if masked else module.exports.values():
        train_used_rows(model, data.corpus.vocabulary)


def ensure_teacher(cfg: DictConfig) -> None:
    """Trains the teacher if the config has `teacher.prepare` and its folder does not exist yet; else reuses it.

    Raises:
        ConfigError: the existing teacher was trained with other settings or on other data.
    """
    folder = Path(cfg.teacher.path)
    training = Path(f"{folder}.training")
    if not cfg.teacher.get("prepare") or (folder.is_dir() and not training.is_dir()):  # the user's own
        return
    with alone(folder.with_suffix(".lock"), f"the teacher {folder}"):
        training_cfg = staged(teachers_config(cfg, folder, training), "full")
        settle_precision(training_cfg)
        try:
            if earlier_results(training, training_cfg) is None or not folder.is_dir():
                log.info("the teacher %s: training it, unless it is finished", folder)
                attempt(training_cfg)
        except OtherRunError as error:
            raise ConfigError(
                f"teacher.path={folder}: holds a teacher trained {error.difference}; must be another folder, "
                "to train a new one, or ++teacher.prepare=null to take this one as it is"
            ) from error
        except DivergedError as error:
            raise ConfigError(f"teacher.path={folder}: its training (teacher.prepare) failed: {error}") from error


def teachers_config(cfg: DictConfig, folder: Path, training: Path) -> DictConfig:
    """Composes the config that trains the teacher from `teacher.prepare` and the groups named in `teacher.inherits`."""
    own = {"paths.export": str(folder), "paths.output": str(training), "paths.runs": cfg.paths.runs}
    steps = plain(cfg.teacher.prepare) | own
    made = compose("train", [override(key, value) for key, value in steps.items()])
    with open_dict(made):
        for part in cfg.teacher.get("inherits") or ():
            made[part] = copy.deepcopy(cfg[part])
            made[part]._set_parent(made)  # interpolations, as `${seed}`, then give the teacher's own values
    return made
