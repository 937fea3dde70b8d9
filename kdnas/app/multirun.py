"""The sweeper of `train.py -m`: it runs every job, and prints an error line for each that failed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from kdnas.app.launchers.returns import reason
from kdnas.base.folders import discard, holds_only


class JobsSweeper(BasicSweeper):
    """Hydra's basic sweeper, except that a failed job neither ends the sweep nor hides the others."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        assert self.launcher is not None
        self.launcher = self.gathering = Gathering(self.launcher)

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        returned = super().sweep(arguments)
        tidy(Path(self.config.hydra.sweep.dir))
        if self.gathering.failed:
            sys.exit("\n".join(f"error: {line}" for line in self.gathering.failed))
        return returned


class Gathering(Launcher):
    """Wraps a launcher: returns the jobs that succeeded, and keeps an error line for each of the others."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.failed: list[str] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        raise NotImplementedError("the other launcher has been set up before")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        returned = self.launcher.launch(job_overrides, initial_job_idx=initial_job_idx)
        common = set.intersection(*map(set, job_overrides))
        for number, (words, job) in enumerate(zip(job_overrides, returned, strict=True), initial_job_idx):
            if job.status == JobStatus.FAILED:
                own = " ".join(word for word in words if word not in common)
                message = " ".join(reason(job).removeprefix("ConfigError: ").split())
                self.failed.append(f"job {number}{f' ({own})' if own else ''}: {message}")
        return [job for job in returned if job.status != JobStatus.FAILED]


def tidy(folder: Path) -> None:
    """Removes a sweep's folder if no job has written anything there, as when all had finished before."""
    if holds_only(folder, ["multirun.yaml"]):
        discard(folder, folder.parent)
