"""Objectives as `conf/objective` makes them, for tests that call no command."""

from pathlib import Path

from omegaconf import OmegaConf

from kdnas.base.config import instantiate

CONF = Path(__file__).resolve().parent.parent / "conf"


def objective(name, task=None, **settings):
    """The objective of a config, with nested settings changed: `logits={"epochs": 1}`."""
    cfg = OmegaConf.create({"objective": OmegaConf.load(CONF / "objective" / f"{name}.yaml"), "task": task or {}})
    return instantiate(OmegaConf.merge(cfg, {"objective": settings}).objective)


def hidden_states(mapping="uniform_last", normalize="none"):
    return objective("hidden_states", mapping=mapping, normalize=normalize)
