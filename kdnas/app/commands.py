"""The commands; each imports PyTorch and what builds on it only once its config is composed."""

from __future__ import annotations

from omegaconf import DictConfig

from kdnas.app.command import Command
from kdnas.base.config import instantiate


def _run(cfg: DictConfig) -> dict[str, float]:
    from kdnas.app.run import run

    return run(cfg)


def _evaluate(cfg: DictConfig) -> object:
    return instantiate(cfg.evaluation)


search = Command("search", _run)
train = Command("train", _run)
evaluate = Command("evaluate", _evaluate, group="evaluation")
