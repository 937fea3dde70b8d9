"""The Trainer, and trainings on several devices (DDP): each process has the students and its shard of every batch."""

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

from kdnas.base.config import instantiate
from kdnas.base.disk import writing
from kdnas.base.errors import ConfigError
from kdnas.base.files import whole
from kdnas.training.precision import fastest_precision

STRATEGIES = ("auto", "ddp")


def make_trainer(config: DictConfig, **settings: Any) -> L.Trainer:
    """Builds the Trainer of a training from the config's `trainer`; `settings` (as `callbacks`) replace its own.

    Raises:
        ConfigError: Lightning refuses the settings, or the strategy is not supported.
    """
    if config.strategy not in STRATEGIES:
        raise ConfigError(
            f"trainer.strategy={config.strategy}: must be one of {', '.join(STRATEGIES)}; "
            "a student of an encoder's size fits on one device, so there is nothing to cut up"
        )
    settings = {"callbacks": None, "strategy": "auto"} | settings
    settings["plugins"] = [WholeCheckpoints()]
    settings["use_distributed_sampler"] = False  # the data module divides batches itself
    try:
        if on_slurm():  # submitit requeues jobs, if they are to be requeued
            settings["plugins"].append(SLURMEnvironment(auto_requeue=False))
        if config.precision == "auto" or (config.devices, config.num_nodes) != (1, 1):
            # Only a Trainer tells which devices Lightning takes, and both settings depend on them.
            devices = {"strategy": config.strategy, "precision": "32-true", "logger": False, "callbacks": None}
            probe = instantiate(config, **settings | devices)
            if config.precision == "auto":
                settings["precision"] = fastest_precision(probe.strategy.root_device.type)
            if count(probe) > 1:
                # Stages freeze parameters that other stages train. Buffers hold no statistics that could differ, and
                # DDP would broadcast them before held-out batches too, whose number may differ between devices.
                settings["strategy"] = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
        return instantiate(config, **settings)
    except (MisconfigurationException, ImportError, RuntimeError) as error:
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from error


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints atomically. Lightning writes them to $TMPDIR, and copies them if that is another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # With a file that torch opens itself, its error would not name the disk error.
        with whole(Path(path)) as aside, writing(aside), aside.open("wb") as file:
            torch.save(checkpoint, file)


def count(trainer: L.Trainer) -> int:
    """Returns the number of devices that a Trainer is configured for; on SLURM, `world_size` is the number of tasks."""
    return trainer.num_devices * trainer.num_nodes


def on_slurm() -> bool:
    """Returns whether SLURM, and not torchrun, has started this process and sets its rank."""
    return SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()


def check_devices(trainer: L.Trainer, devices: Any, searching: bool) -> None:
    """Refuses several devices in a search, in a multirun outside of SLURM, and unless SLURM's tasks are as many."""
    if count(trainer) == 1:
        return
    several = f"trainer.devices={devices}: {count(trainer)} in all"
    if searching:
        raise ConfigError(f"{several}; must be 1 in a search, which trains each candidate on one device")
    if on_slurm():
        tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))  # of this srun
        if tasks != count(trainer):  # Lightning would wait forever
            raise ConfigError(f"{several}; must be as many as the tasks that srun has started, {tasks}")
    elif HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        # Lightning starts the other processes with this process's command, which would run all jobs.
        raise ConfigError(f"{several}; must be 1 in a multirun; run the command once for each value")


def total(value: Tensor) -> Tensor:
    """Returns the sum of a value over all devices (all-reduce)."""
    if torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value


def balanced(mean: Tensor, count: Tensor) -> Tensor:
    """Scales a mean over this device's `count` items so that the average over devices is the mean over all items.

    DDP averages gradients as if all devices had equally many items.
    """
    if not torch.distributed.is_initialized():
        return mean
    return mean * (count * torch.distributed.get_world_size() / total(count).clamp(min=1))
