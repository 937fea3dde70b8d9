"""Checks a run's config before anything is read or trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdnas.base.config import instantiate, plain
from kdnas.base.errors import ConfigError, mounted, require, require_switch, require_whole, shown
from kdnas.base.files import check_folder
from kdnas.costs.cost import Cost, Latency
from kdnas.models.architecture import Architecture
from kdnas.models.exports import check_export
from kdnas.models.loading import check_dropout
from kdnas.training.arguments import check_arguments, check_callbacks, user_callbacks
from kdnas.training.optimization import check_optimization
from kdnas.training.split_metrics import SplitMetrics
from kdnas.training.trainer import check_devices, make_trainer


def staged(cfg: DictConfig, stage: str) -> DictConfig:
    """Returns a config merged with the settings of one of its search stages."""
    try:
        return OmegaConf.merge(cfg, cfg.search.stages[stage] or {}, {"stage": stage})  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"search.stages.{stage}.{error.full_key}: not a setting of the chosen configs "
            f"({str(error).splitlines()[0]})"
        ) from error


def check(cfg: DictConfig) -> None:
    """Refuses settings that can be refused without loading the teacher, which may still have to be trained.

    Raises:
        ConfigError: the first setting that is out of range or does not go with the others.
    """
    require_whole("seed", cfg.seed, 0)
    require_switch("profile", cfg.profile)
    require(cfg.seed < 2**32, "seed", cfg.seed, "below 2^32")
    for key in ("runs", "output") if cfg.paths.export is None else ("runs", "output", "export"):
        check_folder(f"paths.{key}", cfg.paths[key])
    for name in ("data", "objective", "outputs", "module", "reward", "latency", "trainer"):
        if cfg.get(name) is not None and "_target_" not in cfg[name]:  # a setting of a group that was left out
            raise ConfigError(f"{name}: needs a _target_")
    path = cfg.teacher.path
    require(isinstance(path, str) and bool(path), "teacher.path", path, "a folder that holds a model, or a hub id")
    module = plain(cfg.module)
    with mounted("module"):
        check_optimization(*(module.get(name) for name in ("learning_rate", "warmup", "betas", "weight_decay")))
    check_dropout(module.get("dropout"))
    require_switch("module.compile", module.get("compile", False))
    instantiate(cfg.get("outputs"))
    latency, recipe, reward = (instantiate(part) for part in (cfg.get("latency"), cfg.objective, cfg.reward))
    figures = ["loss", *SplitMetrics(recipe.metrics, cfg.module.get("also")).names]
    if cfg.stage == "prepare":
        if latency is None:
            raise ConfigError("latency=null: a search rewards students by what they cost; must be measured")
        cost = Cost(1, 1, dict.fromkeys(latency.accelerators, Latency(1.0, 0.0)))
        reward(dict.fromkeys(figures, 0.5), cost, cost)  # raises if it needs a metric or device that is not measured
    data = instantiate(cfg.data, tokenizer=None)
    for values in cfg.architectures or ():
        architecture(values)
    if cfg.stage != "prepare":
        distils = cfg.architectures is not None
        logged = ["train/loss", *(f"val/{name}" for name in figures)] if distils else []
        trainer = check_trainer(cfg, recipe.epochs if distils else None, logged)
        data.divide(trainer.global_rank, trainer.world_size)
    if cfg.paths.export is not None:
        check_export(Path(cfg.paths.export), several=len(cfg.architectures or ()) > 1)


def check_trainer(cfg: DictConfig, epochs: int | None, figures: Sequence[str] = ()) -> L.Trainer:
    """Builds the Trainer, and refuses settings that do not go with the stages' epochs or with the devices.

    Args:
        epochs: the sum of the stages' epochs; None where the stages have none.
        figures: the names of the metrics that the run will log; empty if they are not known.
    """
    for name, none in (("max_epochs", None), ("max_steps", -1)):
        if epochs is not None and cfg.trainer[name] != none:
            raise ConfigError(
                f"trainer.{name}={cfg.trainer[name]}: must be {'null' if none is None else none}; "
                "the stages have epochs of their own, as objective.labels.epochs"
            )
    check_arguments(cfg.trainer)
    if epochs is None and cfg.trainer.max_epochs in (None, -1) and cfg.trainer.max_steps == -1:
        raise ConfigError(
            f"trainer.max_epochs={shown(cfg.trainer.max_epochs)}: must be a number, or trainer.max_steps be one; the "
            "learning rate falls to zero at the end"
        )
    if cfg.profile and cfg.trainer.get("profiler") is not None:
        raise ConfigError(f"trainer.profiler={cfg.trainer.profiler}: must be left out with profile=true")
    students = cfg.search.gang if cfg.stage == "mini" else len(cfg.architectures or ())
    check_callbacks(user_callbacks(cfg.trainer), figures, epochs is not None, students)
    trainer = make_trainer(cfg, logger=False)
    check_devices(cfg, trainer)
    half = {"16", "16-mixed"} & {str(cfg.trainer.precision), trainer.precision}  # on a CPU Lightning replaces it
    if half and students > 1:
        raise ConfigError(
            f"trainer.precision={cfg.trainer.precision}: must be bf16-mixed for a gang, or search.gang=1; "
            "its students would share one loss scale, and the first that overflows would hold up all"
        )
    return trainer


def architecture(values: DictConfig) -> Architecture:
    """Makes an architecture from its five values, or by the config's `_target_`."""
    if not isinstance(values, DictConfig):
        raise ConfigError(f"architectures: {values}: must be the values of an architecture")
    if "_target_" in values:
        return instantiate(values)
    return Architecture.of(OmegaConf.to_container(values, resolve=True))  # type: ignore[arg-type]
