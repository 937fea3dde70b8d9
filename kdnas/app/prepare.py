"""The prepare job of a search: checks and makes what all candidates need, before the first of them."""

import logging
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import hydra.utils
from omegaconf import DictConfig

from kdnas.app.baselines import baselines
from kdnas.app.build import build, connect
from kdnas.app.kinds import staged, work_of
from kdnas.app.preflight import Plan, preflight
from kdnas.app.proxy_settings import check_listed
from kdnas.app.teacher import ensure_teacher
from kdnas.app.training import complete, train
from kdnas.base.config import as_written, instantiate
from kdnas.base.errors import ConfigError, mounted
from kdnas.base.run_folder import write_prepared
from kdnas.base.screen import activity
from kdnas.costs.cost import Cost, Latency
from kdnas.models.resizing import check_activation
from kdnas.modules.distiller import StudentDistiller
from kdnas.search.job import Job
from kdnas.search.study import Study

log = logging.getLogger(__name__)


def prepare(cfg: DictConfig, job: Job, study: Study | None) -> dict[str, float]:
    """Checks the settings of all jobs of a search, and writes what they have in common into the prepare folder.

    That is the teacher (which is trained if need be), its outputs, cost and metrics, the precision, and chance.
    """
    if not issubclass(hydra.utils.get_class(cfg.module._target_), StudentDistiller):
        raise ConfigError(f"module._target_={cfg.module._target_}: a search distils; must be a StudentDistiller")
    others = [kind for kind in cfg.search.stages if work_of(cfg, Job(kind)) is train]
    jobs = [Job("mini", trials=tuple(range(cfg.search.gang)))]
    jobs += [Job(kind, trials=(0,)) for kind in dict.fromkeys(["full", *others]) if kind != "mini"]
    candidate, *_ = (preflight(staged(cfg, one), one) for one in jobs)
    check_reward(candidate)
    ensure_teacher(cfg, complete)
    space = instantiate(cfg.space)
    for activation in space.dimensions["hidden_act"]:
        check_activation(activation)
    candidate.cfg.architectures = [space.example.to_dict()]
    module, data = build(candidate)
    assert isinstance(module, StudentDistiller)  # checked above
    for extreme in ("hidden_size", "num_hidden_layers") if space.enumerable else ():
        module.student_config(max(space.members, key=attrgetter(extreme)))
    check_listed(cfg, module, job.architectures)
    trainer, costs = candidate.trainer, candidate.costs
    assert costs is not None
    for size in space.reachable["hidden_size"]:
        try:
            module.check_objective(replace(space.example, hidden_size=size, num_attention_heads=1))
        except ConfigError as error:
            raise as_written(cfg, error) from error
        except Exception:  # of a user's term; candidates of this size fail with it, and the others go on
            log.debug("the objective fails for a hidden size of %d", size, exc_info=True)
    with activity("measuring the teacher's latency"), mounted("latency"):
        teacher = costs.cost(module.teacher_config)
    connect(module, data, trainer)
    compared = baselines(module, data, trainer.strategy.root_device)
    facts: dict[str, Any] = {"precision": trainer.precision, "rows": data.digest, "teacher": teacher.to_dict()}
    facts |= {
        "teacher_metrics": compared.teacher,
        "chance": compared.chance,
        "held_out_rows": len(data.validation or ()),
    }
    write_prepared(Path(cfg.paths.output), facts)
    return {}


def check_reward(plan: Plan) -> None:
    """Refuses a reward of a metric or a latency that is not measured."""
    if plan.costs is None:
        raise ConfigError("latency=null: a search rewards students by what they cost; must be a config of conf/latency")
    cost = Cost(1, 1, dict.fromkeys(map(str, plan.costs.targets), Latency(1.0, 0.0)))
    with mounted("reward"):
        instantiate(plan.cfg.reward)(dict.fromkeys(plan.metrics, 0.5), cost, cost)
