"""Several devices for one training (DDP): a process each, with a copy of the students and its share of every batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from torch import Tensor

from kdnas.arguments import user_callbacks
from kdnas.config import instantiate
from kdnas.disk import writing
from kdnas.errors import ConfigError
from kdnas.files import whole
from kdnas.precision import fastest_precision

STRATEGIES = ("auto", "ddp")


def make_trainer(cfg: DictConfig, **settings: Any) -> L.Trainer:
    """The Trainer of a config; `settings` go before the config's, and `callbacks` beside them.

    Raises:
        ConfigError: settings that Lightning refuses, or devices that cannot share this training.
    """
    if cfg.trainer.strategy not in STRATEGIES:
        raise ConfigError(
            f"trainer.strategy={cfg.trainer.strategy}: must be one of {', '.join(STRATEGIES)}; "
            "a student of an encoder's size fits on one device, so there is nothing to cut up"
        )
    settings["callbacks"] = [*settings.get("callbacks", ()), *user_callbacks(cfg.trainer)]
    settings["plugins"] = [WholeCheckpoints()]
    settings["use_distributed_sampler"] = False  # the data module knows its share
    try:
        if on_slurm():  # what stops a job early is requeued by who submitted it
            settings["plugins"].append(SLURMEnvironment(auto_requeue=False))
        given = cfg.trainer.precision
        settings["precision"] = "32-true" if given == "auto" else given
        alone = instantiate(cfg.trainer, **settings | {"logger": False, "callbacks": None})
        if given == "auto":
            settings["precision"] = fastest_precision(alone.strategy.root_device.type)
        if count(alone) == 1:
            settings["strategy"] = "auto"
            return instantiate(cfg.trainer, **settings)
        # Stages freeze parameters that others train. There are no statistics in buffers that could drift apart, and
        # held-out batches, before which DDP would send them too, need not be as many on each device.
        settings["strategy"] = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
        return instantiate(cfg.trainer, **settings)
    except (MisconfigurationException, ImportError, RuntimeError) as error:
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from error


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole. Lightning makes them in $TMPDIR and copies them if that is another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # Of a file that it has opened itself, torch would not say what keeps it from writing.
        with whole(Path(path)) as aside, writing(aside), aside.open("wb") as file:
            torch.save(checkpoint, file)


def count(trainer: L.Trainer) -> int:
    """How many devices a Trainer is to have; on SLURM its `world_size` is what there is."""
    return trainer.num_devices * trainer.num_nodes


def on_slurm() -> bool:
    """Whether SLURM has started this process, and knows its rank."""
    return SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()


def check_devices(cfg: DictConfig, trainer: L.Trainer) -> None:
    """Refuses several devices where they cannot be had.

    Raises:
        ConfigError: a search, a multirun whose processes Lightning would have to start, or other tasks than devices.
    """
    if count(trainer) == 1:
        return
    given = f"trainer.devices={cfg.trainer.devices}: {count(trainer)} in all"
    if cfg.stage == "mini" or cfg.search.trials:
        raise ConfigError(f"{given}; must be 1 in a search, which trains each candidate on one device")
    if on_slurm():
        tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))  # of this srun
        if tasks != count(trainer):  # the others would be waited for
            raise ConfigError(f"{given}; must be as many as the tasks that srun has started, {tasks}")
    elif HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        # Lightning starts the other processes with the command of this one, which is that of all jobs.
        raise ConfigError(f"{given}; must be 1 in a multirun; run the command once for each value")


def total(value: Tensor) -> Tensor:
    """The sum of all devices' values."""
    if torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value


def balanced(mean: Tensor, count: Tensor) -> Tensor:
    """A mean over `count` items of this device, scaled so that the devices' average is the mean over all their items.

    DDP averages gradients as if every device had as many items as the others.
    """
    if not torch.distributed.is_initialized():
        return mean
    return mean * (count * torch.distributed.get_world_size() / total(count).clamp(min=1))
