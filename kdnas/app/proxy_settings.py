"""The settings of `evaluate.py proxy`, as objects: the criterion, the proxies of the grid, and the architectures."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from kdnas.app.kinds import staged
from kdnas.base.config import as_written, instantiate, plain
from kdnas.base.errors import ConfigError, mounted, require, require_whole
from kdnas.search.job import Job

if TYPE_CHECKING:  # Hydra imports this module at every start: nothing heavy before an evaluation begins
    from kdnas.models.architecture import Architecture
    from kdnas.modules.distiller import StudentDistiller
    from kdnas.search.fidelity import Criterion, Proxy

WANTED = "proxy.architectures"
FORM = "{num_hidden_layers:6,num_attention_heads:12,hidden_size:384,intermediate_size:1536,hidden_act:gelu}"


def criterion_of(config: DictConfig) -> Criterion:
    """Makes the criterion of a config's `proxy` settings."""
    from kdnas.search.fidelity import Criterion

    with mounted("proxy"):
        return Criterion(**{one.name: config.proxy[one.name] for one in fields(Criterion) if one.name in config.proxy})


def fidelities_of(config: DictConfig) -> dict[Proxy, dict[str, Any]]:
    """Returns the proxies of a config's grid, each with the settings that it changes."""
    from kdnas.search.fidelity import Proxy

    values = {name: plain(config.proxy[name]) for name in ("epochs", "data")}
    for name, listed in values.items():
        fits = isinstance(listed, list) and 0 < len(listed) == len(set(map(str, listed)))
        require(fits, f"proxy.{name}", listed, "a list of one or more different values")
    with mounted("proxy"):
        proxies = [Proxy(epochs, data) for epochs in values["epochs"] for data in values["data"]]
    stages = timed_stages(config)
    return {proxy: fidelity(proxy, stages) for proxy in proxies}


def timed_stages(config: DictConfig) -> list[str]:
    """Returns the names of the objective's stages that have epochs of their own."""
    stages = instantiate(staged(config, Job("mini")).objective).stages
    return [stage.name for stage in stages if stage.epochs is not None]


def fidelity(proxy: Proxy, stages: Sequence[str]) -> dict[str, Any]:
    """Returns the settings of a proxy, nested as in a config.

    Args:
        stages: the names of the stages that have epochs of their own; without any, the Trainer's epochs are set.
    """
    epochs: dict[str, Any] = {"trainer": {"max_epochs": proxy.epochs, "max_steps": -1}}
    if stages:
        epochs = {"objective": {name: {"epochs": proxy.epochs} for name in stages}}
    return {**epochs, "data": {"proxy": proxy.data}}


def without_own_proxy(config: DictConfig) -> DictConfig:
    """Returns a config whose own settings of mini-KD, which the grid replaces, do not tell it from others."""
    from kdnas.search.fidelity import Proxy

    same = copy.deepcopy(config)
    with open_dict(same):
        same.search.stages.mini.merge_with(fidelity(Proxy(1, 1.0), timed_stages(config)))
    return same


def check_architectures(config: DictConfig) -> None:
    """Refuses `proxy.architectures` as far as that does not need the space, which may ask for the teacher's size."""
    from kdnas.search.fidelity import LEAST

    wanted = config.proxy.architectures
    if OmegaConf.is_list(wanted):
        require(len(wanted) >= LEAST, WANTED, plain(wanted), f"{LEAST} or more")
    else:
        require_whole(WANTED, wanted, LEAST)
    if OmegaConf.is_list(wanted) or config.proxy.search is not None:
        architectures_of(config)


def architectures_of(config: DictConfig) -> list[Architecture]:
    """Returns the architectures of `proxy.architectures`: listed ones, or so many of the space or of a search.

    Raises:
        ConfigError: an unknown or repeated architecture, or more than there are.
    """
    from kdnas.search.spread import spread

    wanted = config.proxy.architectures
    if OmegaConf.is_list(wanted):
        found = [listed_architecture(one) for one in wanted]
        require(len(found) == len(set(found)), WANTED, plain(wanted), "different ones")
        return found
    pool, place = candidates_for(config)
    require(wanted <= len(pool), WANTED, wanted, f"at most {len(pool)}, the architectures of {place}")
    return spread(pool, wanted, config.seed)


def candidates_for(config: DictConfig) -> tuple[list[Architecture], str]:
    """Returns the architectures to choose from, and what they are of: the space, or the search in `proxy.search`."""
    from kdnas.search.journal import JOURNAL, open_storage
    from kdnas.search.spread import members
    from kdnas.search.study import Study

    if config.proxy.search is None:
        return members(instantiate(config.space), config.seed), "the space"
    folder = Path(str(config.proxy.search))
    require((folder / JOURNAL).is_file(), "proxy.search", folder, f"a search folder; it has no {JOURNAL}")
    return [seen.architecture for seen in Study(open_storage(folder)).observations], str(folder)


def listed_architecture(one: Any) -> Architecture:
    """Returns an architecture by the name of its config, or by its five values."""
    from kdnas.app.preflight import architecture

    if isinstance(one, str):
        names = GlobalHydra.instance().config_loader().get_group_options("architecture")
        require(one in names, WANTED, one, f"a number, or names of {', '.join(names)}")
        one = compose(f"architecture/{one}").architecture
    require(OmegaConf.is_dict(one), WANTED, plain(one), f"a number, or a list of names or of five values, as {FORM}")
    with listed_as(one):
        return architecture(one)


def check_listed(config: DictConfig, module: StudentDistiller, architectures: Sequence[Architecture]) -> None:
    """Refuses listed architectures whose students cannot be made, or not be trained with the objective."""
    from kdnas.models.resizing import check_activation

    for one in architectures:
        with listed_as(one):
            check_activation(one.hidden_act)
            module.student_config(one)
            try:
                module.check_objective(one)
            except ConfigError as error:
                raise as_written(config, error) from error


@contextmanager
def listed_as(one: Any) -> Iterator[None]:
    """Names the listed architecture in the errors of the block."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{WANTED}: {one}: {error}") from error
