"""One run: builds the data, the module and the trainer from a config, fits, and leaves the result behind.

`train.py` and every job of `search.py` come here. Scoring a candidate is an ordinary distillation with two more
callbacks and its stage's settings.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import warnings
from functools import cache
from pathlib import Path

import datasets
import lightning as L
import optuna
import transformers
from filelock import FileLock
from hydra import compose
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdnas.architecture import Architecture
from kdnas.callbacks import (
    ControllerUpdate,
    ExportModels,
    LatencyBenchmark,
    LeaveSigterm,
    Progress,
    QuietSteps,
    SeedSteps,
)
from kdnas.checkpoints import check_export, read
from kdnas.config import instantiate, override, plain
from kdnas.datamodules.base import EncodedDataModule
from kdnas.devices import check_devices, make_trainer, on_slurm
from kdnas.errors import ConfigError, is_number, require, require_switch, require_whole
from kdnas.files import check_folder
from kdnas.jobs import candidates, open_study
from kdnas.models import check_activation, check_dropout, reading
from kdnas.modules.base import ExportingModule
from kdnas.modules.distiller import StudentDistiller
from kdnas.modules.metrics import SplitMetrics
from kdnas.modules.optimization import check_optimization
from kdnas.modules.vocabulary import restore_tables, train_used_rows
from kdnas.preflight import check_fit
from kdnas.profiler import TimeTable
from kdnas.runs import RESULTS, earlier_results, note, write_prepared, write_results
from kdnas.search.study import Cost, Latency
from kdnas.shared import shared

log = logging.getLogger(__name__)
RESUMED = {"epoch": int, "global_step": int, "loops": dict, "callbacks": dict, "optimizer_states": list}
"""What Lightning takes from a checkpoint to go on."""


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
        if not cfg.search.trials:
            return attempt(cfg)
        with candidates(cfg) as left:
            return attempt(cfg) if left else {}
    finally:
        gc.collect()  # the next candidate of this process needs the memory


@cache
def keep_lasting() -> None:
    """Lets the collector pass over what is there before the first run: it stays, and there is much of it."""
    gc.collect()
    gc.freeze()


def attempt(cfg: DictConfig) -> dict[str, float]:
    """Checks a config, prepares what it needs, and does what its stage is there for."""
    checked = [staged(cfg, name) for name in (("mini", "full") if cfg.stage == "prepare" else ())]
    cfg = staged(cfg, cfg.stage)
    for one in (cfg, *checked):
        check(one)
    ensure_teacher(cfg)
    settle_precision(cfg)
    results = finished(cfg)
    if results is not None:
        return results
    return prepare(cfg) if cfg.stage == "prepare" else train(cfg)


def staged(cfg: DictConfig, stage: str) -> DictConfig:
    """A config with a stage's settings."""
    try:
        return OmegaConf.merge(cfg, cfg.search.stages[stage] or {}, {"stage": stage})  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"search.stages.{stage}.{error.full_key}: not a setting of what is chosen ({str(error).splitlines()[0]})"
        ) from error


def settle_precision(cfg: DictConfig) -> None:
    """Replaces `auto` by what the search's prepare job has chosen: rewards of one search have to compare."""
    if cfg.trainer.precision == "auto" and cfg.search.trials:
        cfg.trainer.precision = open_study(cfg).precision


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


def check(cfg: DictConfig) -> None:
    """Refuses what can be refused without the teacher, which may still have to be trained."""
    require_whole("seed", cfg.seed, 0)
    require_switch("profile", cfg.profile)
    require(cfg.seed < 2**32, "seed", cfg.seed, "below 2^32")
    for key in ("runs", "output") if cfg.paths.export is None else ("runs", "output", "export"):
        check_folder(f"paths.{key}", cfg.paths[key])
    for name in ("data", "objective", "outputs", "module", "reward", "latency", "trainer"):
        if cfg.get(name) is not None and "_target_" not in cfg[name]:  # the group was left out, and settings of it not
            raise ConfigError(f"{name}: says nothing to make; must have a _target_")
    path = cfg.teacher.path
    require(isinstance(path, str) and bool(path), "teacher.path", path, "a folder that holds a model, or a hub id")
    module = plain(cfg.module)
    check_optimization(*(module.get(name) for name in ("learning_rate", "warmup", "betas", "weight_decay")))
    check_dropout(module.get("dropout"))
    require_switch("module.compile", module.get("compile", False))
    instantiate(cfg.get("outputs"))
    latency, recipe, reward = (instantiate(part) for part in (cfg.get("latency"), cfg.objective, cfg.reward))
    if cfg.stage == "prepare":
        if latency is None:
            raise ConfigError("latency=null: a search rewards students by what they cost; must be measured")
        cost = Cost(1, 1, dict.fromkeys(latency.accelerators, Latency(1.0, 0.0)))
        figures = ["loss", *SplitMetrics(recipe.metrics, cfg.module.get("also")).names]
        reward(dict.fromkeys(figures, 0.5), cost, cost)  # it is made of what will be measured
    data = instantiate(cfg.data, tokenizer=None)
    for values in cfg.architectures or ():
        architecture(values)
    if cfg.stage != "prepare":
        trainer = check_trainer(cfg, recipe.epochs if cfg.architectures is not None else None)
        data.divide(trainer.global_rank, trainer.world_size)
    if cfg.paths.export is not None:
        check_export(Path(cfg.paths.export))


def check_trainer(cfg: DictConfig, epochs: int | None) -> L.Trainer:
    """The Trainer, or a refusal: it must go with the stages' epochs, if they have any, and with its devices."""
    for name, none in (("max_epochs", None), ("max_steps", -1)):
        if epochs is not None and cfg.trainer[name] != none:
            raise ConfigError(
                f"trainer.{name}={cfg.trainer[name]}: must be {'null' if none is None else none}; "
                "the stages have epochs of their own, as objective.labels.epochs"
            )
    require_whole("trainer.max_epochs", 1 if cfg.trainer.max_epochs is None else cfg.trainer.max_epochs, -1)
    require_whole("trainer.max_steps", cfg.trainer.max_steps, -1)
    clip = cfg.trainer.gradient_clip_val
    require(clip is None or (is_number(clip) and clip >= 0), "trainer.gradient_clip_val", clip, "null or from 0")
    trainer = make_trainer(cfg, logger=False)
    check_devices(cfg, trainer)
    students = cfg.search.gang if cfg.stage == "mini" else len(cfg.architectures or ())
    half = {"16", "16-mixed"} & {str(cfg.trainer.precision), trainer.precision}  # on a CPU Lightning takes another
    if half and students > 1:
        raise ConfigError(
            f"trainer.precision={cfg.trainer.precision}: must be bf16-mixed for a gang, or search.gang=1; "
            "its students would share one loss scale, and the first that overflows would hold up all"
        )
    return trainer


def finished(cfg: DictConfig) -> dict[str, float] | None:
    """The results of the same run if its folder holds them. A search knows its own: it does not ask twice."""
    if cfg.stage == "prepare" or cfg.search.trials:
        return None
    results = earlier_results(Path(cfg.paths.output), cfg)
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
    key = (json.dumps(plain(cfg.data), sort_keys=True), cfg.module.get("teacher"), module.tokenizer.name_or_path)
    data = shared("data", key, lambda: instantiate(cfg.data, tokenizer=module.tokenizer))
    data.trainer, data.first_epoch = None, 0
    module.check(masked=data.masking is not None)
    source = f"checkpoint={cfg.checkpoint}" if cfg.get("checkpoint") else f"teacher.path={cfg.teacher.path}"
    check_fit(module.source_config, module.tokenizer, source, data.texts_per_row, data.max_length)
    if latency and isinstance(module, StudentDistiller):
        latency.protocol.check(module.teacher_config)
    if isinstance(module, StudentDistiller) and not cfg.search.trials:  # of a search, the prepare job has checked it
        module.check_teacher()
    data.transfer_epochs = module.transfer_epochs
    return module, data, latency


def architecture(values: DictConfig) -> Architecture:
    """From five values, or from whatever `_target_` says gives them."""
    if not isinstance(values, DictConfig):
        raise ConfigError(f"architectures: {values}: must be the values of an architecture")
    if "_target_" in values:
        return instantiate(values)
    return Architecture.of(OmegaConf.to_container(values, resolve=True))  # type: ignore[arg-type]


def prepare(cfg: DictConfig) -> dict[str, float]:
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
    write_prepared(Path(cfg.paths.output), {"precision": trainer.precision, "teacher_metrics": {}, "chance": {}})
    return {}


def train(cfg: DictConfig) -> dict[str, float]:
    """Fits, from `last.ckpt` if the folder holds one; validates the best weights, exports them and tells.

    On several devices each process comes here; the first writes what is left behind.
    """
    output, export = Path(cfg.paths.output), cfg.paths.export
    profiler = TimeTable() if cfg.profile else PassThroughProfiler()
    with profiler.profile("models and data"):
        module, data, latency = build(cfg)
        data.setup("fit")
    callbacks: list[L.Callback] = [Progress(cfg.title), QuietSteps(), SeedSteps(cfg.seed), last_checkpoint(output)]
    if on_slurm():
        callbacks.append(LeaveSigterm())
    if latency:
        callbacks.append(latency)
    if export:
        callbacks.append(ExportModels(export))
    if cfg.search.trials and latency:  # `prepare` makes sure that a search measures
        study = open_study(cfg, controller=instantiate(cfg.controller)(seed=cfg.seed))
        callbacks.append(ControllerUpdate(study, cfg.search.trials, instantiate(cfg.reward), latency, export))
    epochs = {} if module.epochs is None else {"max_epochs": module.epochs}
    epochs["reload_dataloaders_every_n_epochs"] = int(data.transfer is not None)
    trainer = make_trainer(cfg, callbacks=callbacks, logger=instantiate(cfg.logger), profiler=profiler, **epochs)
    data.divide(trainer.global_rank, trainer.world_size)
    first = trainer.is_global_zero
    if not first:
        logging.getLogger("kdnas").setLevel(logging.WARNING)  # the first process says it all
    with profiler.profile("keep outputs"):
        settle(module, data, trainer)
    last = resumable(output / "last.ckpt", module, data, searching=bool(cfg.search.trials))
    if first and not cfg.search.trials:  # of a search, the study knows the settings
        note(output, cfg)
    trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
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
    return dict(module.results[0])


def settle(module: ExportingModule, data: EncodedDataModule, trainer: L.Trainer) -> None:
    """What the rows that have been read decide: how the teacher is asked, and which word embeddings are trained."""
    masked = data.masking is not None  # a pass changes its rows, and brings words that are in none
    if isinstance(module, StudentDistiller):
        module.open_teacher(trainer, None if masked else data.corpus)
    for model in () if masked else module.exports.values():
        train_used_rows(model, data.corpus.vocabulary)


def check_time(trainer: L.Trainer, cfg: DictConfig) -> None:
    """What was cut short has not shown what it can do: that is a failure, and not a low reward."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    if any((timer.time_remaining() or 1) <= 0 for timer in timers):
        raise ConfigError(
            f"trainer.max_time={cfg.trainer.max_time}: was over in epoch {trainer.current_epoch + 1}; "
            "must be longer, to go on from there"
        )


def last_checkpoint(output: Path) -> ModelCheckpoint:
    """Keeps `last.ckpt`, of the last epoch, to go on from."""
    # Saved when the epoch has ended: one made at its validation would make Lightning count it again.
    return ModelCheckpoint(output, "last", save_on_train_epoch_end=True, enable_version_counter=False)


def resumable(path: Path, module: ExportingModule, data: EncodedDataModule, searching: bool = False) -> str | None:
    """A checkpoint to go on from, if there is one; refused before training if it does not fit.

    Args:
        searching: whether it is a candidate's, which begins anew if its checkpoint cannot be read.
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
    theirs = {name: value.shape for name, value in saved["state_dict"].items()}
    ours = {name: value.shape for name, value in module.state_dict().items()}
    if theirs != ours:
        odd = next(name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name))
        raise ConfigError(f"paths.output={path.parent}: holds a run with other settings (they differ in {odd})")
    data.first_epoch = saved["epoch"] + 1
    log.info("going on from %s", path)
    return str(path)


def ensure_teacher(cfg: DictConfig) -> None:
    """Trains the teacher if its config says how and it is not there yet; then it is kept and reused.

    Raises:
        ConfigError: the one that is there was made with other settings.
    """
    folder = Path(cfg.teacher.path)
    training = Path(f"{folder}.training")
    if not cfg.teacher.get("prepare") or (folder.is_dir() and not training.is_dir()):  # brought by the user
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        own = {"paths.export": str(folder), "paths.output": str(training), "paths.runs": cfg.paths.runs}
        steps = plain(cfg.teacher.prepare) | own
        training_cfg = compose("train", [override(key, value) for key, value in steps.items()])
        if earlier_results(training, staged(training_cfg, "full")) is None or not folder.is_dir():
            log.info("the teacher %s is not there yet: training it", folder)
            run(training_cfg)
