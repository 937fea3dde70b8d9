"""Objectives as `conf/objective` makes them, for tests that call no command."""

from pathlib import Path

from omegaconf import OmegaConf

from kdnas.base.config import instantiate

CONF = Path(__file__).resolve().parent.parent / "conf"


def objective(name, task=None, **settings):
    """The objective of a config, with nested settings changed: `logits={"epochs": 1}`."""
    cfg = OmegaConf.create({"objective": values(name), "task": task})
    return instantiate(OmegaConf.merge(cfg, {"objective": settings}).objective)


def values(name):
    """The values of a config and of those that it builds on."""
    own = OmegaConf.load(CONF / "objective" / f"{name}.yaml")
    parents = [values(each) for each in own.pop("defaults", []) if isinstance(each, str) and each != "_self_"]
    return OmegaConf.merge(*parents, own)


def hidden_states(mapping="uniform_last", normalize="none"):
    return objective("hidden_states", mapping=mapping, normalize=normalize)
