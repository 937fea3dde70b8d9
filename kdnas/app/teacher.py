"""Trains a search's or a distillation's teacher, if the config says how and it does not exist yet."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, open_dict

from kdnas.app.kinds import staged
from kdnas.app.overrides import is_brought
from kdnas.app.preflight import Plan, preflight
from kdnas.base.config import override, plain
from kdnas.base.errors import ConfigError
from kdnas.base.identity import OtherSettingsError
from kdnas.base.locks import alone
from kdnas.base.run_folder import earlier_precision, earlier_results
from kdnas.modules.base import DivergedError
from kdnas.search.job import Job

log = logging.getLogger(__name__)


def ensure_teacher(cfg: DictConfig, complete: Callable[[Plan], Any]) -> None:
    """Trains the teacher, by `complete`, if the config has `teacher.prepare` and its folder does not exist yet.

    A ConfigError refuses a teacher that was trained with other settings or on other data.
    """
    folder = Path(cfg.teacher.path)
    training = Path(f"{folder}.training")
    if not cfg.teacher.get("prepare") or is_brought(cfg):
        return
    with alone(folder.with_suffix(".lock"), f"the teacher {folder}"):
        own = teachers_config(cfg, folder, training)
        own = staged(own, Job.of(own))
        if own.trainer.precision == "auto":
            own.trainer.precision = earlier_precision(training) or "auto"
        try:
            if earlier_results(training, own) is None or not folder.is_dir():
                plan = preflight(own)
                log.info("the teacher %s: training it, unless it is finished", folder)
                complete(plan)
        except OtherSettingsError as error:
            raise ConfigError(
                f"teacher.path={folder}: holds a teacher trained {error.difference}; must be another folder, "
                "to train a new one, or ++teacher.prepare=null to take this one as it is"
            ) from error
        except DivergedError as error:
            raise ConfigError(f"teacher.path={folder}: its training (teacher.prepare) failed: {error}") from error


def teachers_config(cfg: DictConfig, folder: Path, training: Path) -> DictConfig:
    """Composes the config that trains the teacher from `teacher.prepare` and the groups named in `teacher.inherits`."""
    own = {"paths.export": str(folder), "paths.output": str(training), "paths.runs": cfg.paths.runs}
    steps = plain(cfg.teacher.prepare) | own
    made = compose("train", [override(key, value) for key, value in steps.items()])
    with open_dict(made):
        for part in cfg.teacher.get("inherits") or ():
            made[part] = copy.deepcopy(cfg[part])
            made[part]._set_parent(made)  # interpolations, as `${seed}`, then give the teacher's own values
    return made
