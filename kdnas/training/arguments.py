"""The Trainer's arguments and the user's callbacks: each is used, or refused before anything is trained."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from omegaconf import DictConfig, OmegaConf

from kdnas.base.config import instantiate, plain
from kdnas.base.errors import ConfigError, is_number, require, require_switch, require_whole, shown

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "logger": ((), "the group `logger` makes it, as logger=csv; '~logger' goes without"),
    "plugins": (([],), "kdnas brings its own, for checkpoints that appear whole"),
    "use_distributed_sampler": ((True, False), ""),
    "reload_dataloaders_every_n_epochs": ((0,), "the data module knows when its rows change"),
    "enable_checkpointing": ((True,), "a run that was stopped goes on from last.ckpt"),
    "overfit_batches": ((0,), "data.rows and data.held_out take few rows"),
    "fast_dev_run": ((0, False), "data.rows, data.held_out and trainer.max_steps make a run short"),
    "barebones": ((False,), "held-out metrics decide which weights are kept, and it switches validation off"),
    "limit_test_batches": ((), "kdnas does not test; it validates"),
    "limit_predict_batches": ((), "kdnas does not predict; it validates"),
    "model_registry": ((), "the model is left in paths.export"),
}
"""Trainer arguments that kdnas sets itself or has no use for: the values that are allowed, and the alternative."""
REFUSED_CALLBACKS: dict[type[Callback], str] = {
    BaseFinetuning: "would freeze other layers when a run is resumed; a stage's `gradual` unfreezes layers",
    BatchSizeFinder: "would train before the run to try sizes; must be data.batch_size or data.batch_tokens",
    LearningRateFinder: "would train before the run to try rates; must be module.learning_rate",
    StochasticWeightAveraging: "would replace the schedule of the learning rate, and the best weights by their mean",
}
"""Callbacks of Lightning that would change how kdnas trains behind its back, and the alternative."""


def check_arguments(trainer: DictConfig, epochs: int | None = None, profile: bool = False) -> None:
    """Refuses arguments that would be ignored, or fail within a training; stages that have epochs set their number."""
    for name, none in (("max_epochs", None), ("max_steps", -1)):
        if epochs is not None and trainer[name] != none:
            raise ConfigError(
                f"trainer.{name}={trainer[name]}: must be {shown(none)}; "
                "the stages have epochs of their own, as objective.labels.epochs"
            )
    settings = {name: plain(trainer[name]) for name in trainer if name != "callbacks" and trainer[name] is not None}
    for name, (harmless, instead) in REFUSED.items():
        value = settings.get(name)
        if value is not None and not any(value == known and type(value) is type(known) for known in harmless):
            raise ConfigError(f"trainer.{name}={shown(value)}: must be left out; {instead}")
    for least, names in (
        (-1, ("max_epochs", "max_steps", "num_sanity_val_steps")),
        (0, ("min_epochs", "min_steps", "log_every_n_steps")),
        (1, ("accumulate_grad_batches", "check_val_every_n_epoch")),
    ):
        for name in names:
            require_whole(f"trainer.{name}", settings.get(name, least), least)
    for name in ("enable_progress_bar", "enable_model_summary", "detect_anomaly", "inference_mode"):
        require_switch(f"trainer.{name}", settings.get(name, False))
    for name in ("limit_train_batches", "limit_val_batches"):
        value = settings.get(name, 1)
        fits = is_number(value) and (value >= 1 if isinstance(value, int) else 0 < value <= 1)
        allowed = "a number of batches from 1, or a share of them above 0.0 and up to 1.0"
        require(fits, f"trainer.{name}", value, allowed)
    for unit in ("epochs", "steps"):
        lower, upper = settings.get(f"min_{unit}"), settings.get(f"max_{unit}")
        if lower is not None and upper not in (None, -1) and lower > upper:
            raise ConfigError(f"trainer.min_{unit}={lower}: must be at most trainer.max_{unit}={upper}")
    clip = settings.get("gradient_clip_val", 0)
    require(is_number(clip) and clip >= 0, "trainer.gradient_clip_val", clip, "null or from 0")
    if epochs is None and trainer.max_epochs in (None, -1) and trainer.max_steps == -1:
        raise ConfigError(
            f"trainer.max_epochs={shown(trainer.max_epochs)}: must be a number, or trainer.max_steps be one; the "
            "learning rate falls to zero at the end"
        )
    if profile and trainer.get("profiler") is not None:
        raise ConfigError(f"trainer.profiler={trainer.profiler}: must be left out with profile=true")


def user_callbacks(cfg: DictConfig) -> list[Callback]:
    """Instantiates the callbacks that a user adds: the group `callbacks`, then the list `trainer.callbacks`."""
    made = []
    for name, wanted in (cfg.get("callbacks") or {}).items():
        one = instantiate(wanted) if OmegaConf.is_config(wanted) else wanted
        require(isinstance(one, Callback), f"callbacks.{name}", plain(wanted), "a Lightning callback, by its _target_")
        made.append(one)
    wanted = cfg.trainer.get("callbacks")
    listed = (instantiate(wanted) if OmegaConf.is_config(wanted) else wanted) or []
    listed = [listed] if isinstance(listed, Callback) else listed
    if not isinstance(listed, list) or not all(isinstance(one, Callback) for one in listed):
        value = shown(plain(wanted))
        raise ConfigError(f"trainer.callbacks={value}: must be a list of callbacks, each by its _target_")
    return made + listed


def check_callbacks(
    callbacks: Sequence[Callback], metrics: Sequence[str], epochs: int | None, students: int = 1
) -> None:
    """Refuses callbacks that monitor no logged metric (if these are known), or that cannot be used in this training."""
    for callback in callbacks:
        name, monitor = type(callback).__name__, getattr(callback, "monitor", None)
        if monitor is not None and metrics and monitor not in metrics:
            raise ConfigError(f"callbacks: {name}: monitor={monitor}: not logged; there is {', '.join(metrics)}")
        for kind, reason in REFUSED_CALLBACKS.items():
            if isinstance(callback, kind):
                raise ConfigError(f"callbacks: {name} {reason}")
        if isinstance(callback, EarlyStopping) and epochs is not None:
            raise ConfigError(
                f"callbacks: {name} would end the training in its first stage; the stages have epochs of "
                "their own, as objective.labels.epochs, and each goes on from its best"
            )
        if isinstance(callback, EarlyStopping) and students > 1:
            raise ConfigError(
                f"callbacks: {name} would stop all students of a gang by their mean; must be with one "
                "student, as search.gang=1"
            )
