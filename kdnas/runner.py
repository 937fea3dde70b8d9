"""One run: builds the data, the module and the trainer from a config, fits, and leaves the result behind.

`train.py` and every job of `search.py` come here. Scoring a candidate is an ordinary distillation with two more
callbacks and its stage's settings.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
import sys
import warnings
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import lightning as L
import optuna
import transformers
from filelock import FileLock
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig, open_dict

from kdnas.callbacks import (
    ControllerUpdate,
    ExportModels,
    LatencyBenchmark,
    LeaveSigterm,
    QuietSteps,
    SeedSteps,
)
from kdnas.config import instantiate, override, plain
from kdnas.datamodules.base import EncodedDataModule
from kdnas.devices import make_trainer, on_slurm
from kdnas.errors import ConfigError
from kdnas.fitting import bar, check_time, fit
from kdnas.identity import stamp
from kdnas.jobs import candidates, open_study
from kdnas.models import check_activation
from kdnas.modules.base import ExportingModule
from kdnas.modules.distiller import StudentDistiller
from kdnas.modules.vocabulary import restore_tables, train_used_rows
from kdnas.preflight import architecture, check, staged
from kdnas.profiler import TimeTable
from kdnas.resuming import LastCheckpoint, resumable
from kdnas.runs import (
    RESULTS,
    OtherRunError,
    alone,
    earlier_precision,
    earlier_results,
    note,
    withdraw,
    write_prepared,
    write_results,
)
from kdnas.shared import shared

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> dict[str, float]:
    """Runs one config and returns its held-out metrics (the first student's).

    Raises:
        ConfigError: bad input, before anything is trained.
    """
    stages = cfg.search.stages
    if cfg.stage not in (stages or ()):
        raise ConfigError(f"stage={cfg.stage}: must be one of {', '.join(stages or ())}")
    quieten()
    keep_lasting()
    try:
        if cfg.search.trials:
            with candidates(cfg) as left:
                return attempt(cfg)[0] if left else {}
        results, fresh = attempt(cfg)
        if not fresh and HydraConfig.initialized():
            withdraw()
        return results
    finally:
        gc.collect()  # the next candidate of this process needs the memory


@cache
def keep_lasting() -> None:
    """Lets the collector pass over what is there before the first run: it stays, and there is much of it."""
    gc.collect()
    gc.freeze()


def attempt(cfg: DictConfig) -> tuple[dict[str, float], bool]:
    """Checks a config, prepares what it needs, and does what its stage is there for.

    Returns:
        The held-out metrics, and whether they are new.
    """
    checked = [staged(cfg, name) for name in (("mini", "full") if cfg.stage == "prepare" else ())]
    cfg = staged(cfg, cfg.stage)
    for one in (cfg, *checked):
        check(one)
    own = cfg.stage != "prepare" and not cfg.search.trials and make_trainer(cfg, logger=False).is_global_zero
    with alone(Path(cfg.paths.output)) if own else nullcontext():  # a search has locks of its own
        if not cfg.search.trials:  # of a search, the prepare job has seen to it
            ensure_teacher(cfg)
        settle_precision(cfg)
        if results := finished(cfg):
            return results, False
        return prepare(cfg) if cfg.stage == "prepare" else train(cfg)


def settle_precision(cfg: DictConfig) -> None:
    """Replaces `auto` by what the run began with or, of a search, by what its prepare job has chosen for all."""
    if cfg.trainer.precision != "auto" or cfg.stage == "prepare":
        return
    if cfg.search.trials:
        cfg.trainer.precision = open_study(cfg).precision
    else:
        chosen = make_trainer(cfg, logger=False).precision
        cfg.trainer.precision = earlier_precision(Path(cfg.paths.output)) or chosen


def quieten() -> None:
    """Leaves the terminal to what a user can use."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it cannot read, it also raises
    if not sys.stderr.isatty():
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
    """The results of the same run if its folder holds them. A search knows its own: it does not ask twice.

    Args:
        rows: the digest of the data, once they are read.
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
    """The module, the data module and (for distillation) the latency callback of a config."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    latency = instantiate(cfg.get("latency"))
    students = {}
    if cfg.architectures is not None:
        students["architectures"] = [architecture(values) for values in cfg.architectures]
        students["outputs"] = instantiate(cfg.get("outputs"))
        if cfg.stage != "full":  # the teacher is asked once for all candidates
            students["depths"] = plain(cfg.space).get("num_hidden_layers", [])  # those that the constraints exclude too
    module = instantiate(cfg.module, **students)
    # Read and tokenized once for all candidates of a process. A tokenizer goes with the module's model.
    key = (
        json.dumps(plain(cfg.data), sort_keys=True),
        stamp(plain(cfg.data)),
        cfg.module.get("teacher"),
        module.tokenizer.name_or_path,
    )
    data = shared("data", key, lambda: instantiate(cfg.data, tokenizer=module.tokenizer))
    data.trainer, data.first_epoch = None, 0
    module.check(masked=data.masking is not None)
    if latency and isinstance(module, StudentDistiller):
        latency.protocol.check(module.teacher_config)
    data.transfer_epochs = module.transfer_epochs
    return module, data, latency


def prepare(cfg: DictConfig) -> tuple[dict[str, float], bool]:
    """Everything that a search's jobs need, made or refused before the first of them."""
    space = instantiate(cfg.space)
    for activation in space.dimensions["hidden_act"]:
        check_activation(activation)
    cfg = staged(cfg, "mini")
    cfg.architectures = [space.example.to_dict()]
    module, data, latency = build(cfg)
    data.setup("fit")
    if latency is None or not isinstance(module, StudentDistiller):
        raise ConfigError(f"module._target_={cfg.module._target_}: a search distils; must be a StudentDistiller")
    latency.cost(module.teacher_config)
    trainer = make_trainer(cfg, logger=False)
    settle(module, data, trainer)
    facts: dict[str, Any] = {"precision": trainer.precision, "teacher_metrics": {}, "chance": {}, "rows": data.digest}
    write_prepared(Path(cfg.paths.output), facts)
    return {}, True


def train(cfg: DictConfig) -> tuple[dict[str, float], bool]:
    """Fits, from `last.ckpt` if the folder holds one; validates the best weights, exports them and tells.

    On several devices each process comes here; the first writes what is left behind.
    """
    output, export = Path(cfg.paths.output), cfg.paths.export
    profiler = TimeTable() if cfg.profile else PassThroughProfiler()
    with profiler.profile("models and data"):
        module, data, latency = build(cfg)
        data.setup("fit")
    if results := finished(cfg, data.digest):
        return results, False
    callbacks: list[L.Callback] = [*bar(cfg), QuietSteps(), SeedSteps(cfg.seed), LastCheckpoint(output)]
    if on_slurm():
        callbacks.append(LeaveSigterm())
    if latency:
        callbacks.append(latency)
    if export:
        callbacks.append(ExportModels(export))
    if cfg.search.trials and latency:  # `prepare` makes sure that a search measures
        study = open_study(cfg, controller=instantiate(cfg.controller)(seed=cfg.seed))
        callbacks.append(ControllerUpdate(study, cfg.search.trials, instantiate(cfg.reward), latency, export))
    settings: dict[str, Any] = {} if module.epochs is None else {"max_epochs": module.epochs}
    settings |= {"profiler": profiler} if cfg.profile else {}
    settings["reload_dataloaders_every_n_epochs"] = int(data.transfer is not None)
    trainer = make_trainer(cfg, callbacks=callbacks, logger=instantiate(cfg.get("logger")) or False, **settings)
    data.divide(trainer.global_rank, trainer.world_size)
    first = trainer.is_global_zero
    if not first:
        logging.getLogger("kdnas").setLevel(logging.WARNING)  # the first process says it all
    with profiler.profile("keep outputs"):
        settle(module, data, trainer)
    last = resumable(output / "last.ckpt", module, data, searching=bool(cfg.search.trials))
    if first and not cfg.search.trials:  # of a search, the study knows the settings
        note(output, cfg, data.digest)
    fit(trainer, module, data, last)
    check_time(trainer, cfg)
    module.best.restore()
    for model in module.exports.values():
        restore_tables(model)
    if export:
        trainer.save_checkpoint(output / "best.ckpt", weights_only=True)
    trainer.validate(module, datamodule=data, verbose=False)
    if isinstance(module, StudentDistiller) and not cfg.search.trials:
        module.refuse_lost()
    if first:
        write_results(output / RESULTS, module.results)
        if export:
            log.info("wrote %s, %s and results.json beside them", output / "best.ckpt", output / "last.ckpt")
        else:
            (output / "last.ckpt").unlink(missing_ok=True)
        if isinstance(profiler, TimeTable):
            path = output / "profile.csv"
            log.info("where the time went (%s):\n%s", path, profiler.write(path))
    data.trainer = None  # the next run may have the same data, and needs the memory of all this
    return dict(module.results[0]), True


def settle(module: ExportingModule, data: EncodedDataModule, trainer: L.Trainer) -> None:
    """What the rows that have been read decide: how the teacher is asked, and which word embeddings are trained."""
    masked = data.masking is not None  # a pass changes its rows, and brings words that are in none
    if isinstance(module, StudentDistiller):
        module.open_teacher(trainer, None if masked else data.corpus)
    for model in () if masked else module.exports.values():
        train_used_rows(model, data.corpus.vocabulary)


def ensure_teacher(cfg: DictConfig) -> None:
    """Trains the teacher if its config says how and it is not there yet; then it is kept and reused.

    Raises:
        ConfigError: the one that is there was made with other settings, or of other data.
    """
    folder = Path(cfg.teacher.path)
    training = Path(f"{folder}.training")
    if not cfg.teacher.get("prepare") or (folder.is_dir() and not training.is_dir()):  # brought by the user
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        training_cfg = staged(teachers_config(cfg, folder, training), "full")
        settle_precision(training_cfg)
        try:
            if earlier_results(training, training_cfg) is None or not folder.is_dir():
                log.info("the teacher %s: training it, if it is not there", folder)
                attempt(training_cfg)
        except OtherRunError as error:
            raise ConfigError(
                f"teacher.path={folder}: a teacher made otherwise ({error.difference}); must be another folder, where "
                "one is made anew"
            ) from error


def teachers_config(cfg: DictConfig, folder: Path, training: Path) -> DictConfig:
    """The config that trains the teacher: that of its `prepare`, with the parts of this one that it inherits whole."""
    own = {"paths.export": str(folder), "paths.output": str(training), "paths.runs": cfg.paths.runs}
    steps = plain(cfg.teacher.prepare) | own
    made = compose("train", [override(key, value) for key, value in steps.items()])
    with open_dict(made):
        for part in cfg.teacher.get("inherits") or ():
            made[part] = copy.deepcopy(cfg[part])
            made[part]._set_parent(
                made
            )  # what it takes from elsewhere, as its seed, it takes from the teacher's config
    return made
