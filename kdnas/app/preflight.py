"""Checks a run's settings before anything is read or trained, and makes from them what the run needs."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from omegaconf import DictConfig, ListConfig, OmegaConf

from kdnas.app.overrides import OPTIONAL
from kdnas.app.resuming import LastCheckpoint, LeaveSigterm
from kdnas.base.config import instantiate, plain
from kdnas.base.errors import ConfigError, mounted, require, require_switch, require_whole
from kdnas.base.files import check_folder
from kdnas.base.profiler import TimeTable
from kdnas.base.run_folder import earlier_precision
from kdnas.callbacks.controller import ControllerUpdate
from kdnas.callbacks.export import ExportModels
from kdnas.callbacks.latency import LatencyBenchmark
from kdnas.callbacks.progress import Progress
from kdnas.callbacks.steps import QuietSteps, SeedSteps
from kdnas.costs import CostModel
from kdnas.models.architecture import Architecture
from kdnas.models.exports import check_export
from kdnas.models.heads import check_dropout
from kdnas.search.job import Job
from kdnas.search.study import Study
from kdnas.training.arguments import check_arguments, check_callbacks, user_callbacks
from kdnas.training.optimization import check_optimization
from kdnas.training.split_metrics import SplitMetrics
from kdnas.training.trainer import check_devices, make_trainer, on_slurm

GROUPS = ("data", "objective", "outputs", "module", "reward", "latency", "trainer")
"""The parts of a config that are objects."""


@dataclass(frozen=True)
class Plan:
    """A training whose settings have been checked.

    Attributes:
        cfg: the config, with the settings of the job and the precision that is trained in.
        study: the study that the job's trials are reported to; None if it has no trials.
        costs: measures what models cost; None if nothing is measured.
        metrics: the names of the held-out metrics of a distillation, `loss` first.
    """

    cfg: DictConfig
    job: Job
    study: Study | None
    trainer: L.Trainer
    costs: CostModel | None
    profiler: Profiler
    metrics: tuple[str, ...]

    @property
    def output(self) -> Path:
        return Path(self.cfg.paths.output)

    @property
    def first(self) -> bool:
        """Whether this is the first of the processes that train together, which writes all files."""
        return self.trainer.is_global_zero


def preflight(cfg: DictConfig, job: Job | None = None, study: Study | None = None) -> Plan:
    """Refuses the first setting that can be refused without the teacher, which may still have to be trained.

    `cfg` has the settings of the job already (see `kdnas.app.kinds.staged`).
    """
    job = job or Job.of(cfg)
    cfg = copy.deepcopy(cfg)
    check_settings(cfg)
    instantiate(cfg.get("outputs"))
    instantiate(cfg.module.get("student"))
    costs, objective, reward = (instantiate(part) for part in (cfg.get("latency"), cfg.objective, cfg.reward))
    split_metrics = SplitMetrics(objective.task, cfg.module.get("also")).names
    metrics = tuple(dict.fromkeys([*objective.metric_names, *split_metrics]))
    data = instantiate(cfg.data, tokenizer=None)
    distils = cfg.architectures is not None
    students = len(job.trials or [architecture(values) for values in cfg.architectures or ()])
    epochs = objective.epochs if distils else None
    check_arguments(cfg.trainer, epochs, cfg.profile)
    own = user_callbacks(cfg)
    check_callbacks(own, ["train/loss", *(f"val/{name}" for name in metrics)] if distils else [], epochs, students)
    check_fp16(cfg.trainer.precision, students)
    if cfg.trainer.precision == "auto":
        cfg.trainer.precision = study.precision if study else earlier_precision(Path(cfg.paths.output)) or "auto"
    latency = LatencyBenchmark(costs) if costs else None
    callbacks = [*run_callbacks(cfg, job, own), *([latency] if latency else [])]
    if cfg.paths.export is not None:
        check_export(Path(cfg.paths.export), several=students > 1)
        callbacks.append(ExportModels(cfg.paths.export, all_or_none=not job.trials))
    if study and latency:  # the prepare job refuses a search without `latency`
        callbacks.append(ControllerUpdate(study, job.trials, reward, latency, cfg.paths.export))
    profiler = TimeTable() if cfg.profile else PassThroughProfiler()
    settings = ({} if epochs is None else {"max_epochs": epochs}) | ({"profiler": profiler} if cfg.profile else {})
    logger = instantiate(cfg.get("logger")) or False
    trainer = make_trainer(cfg.trainer, callbacks=[*callbacks, *own], logger=logger, **settings)
    check_devices(trainer, cfg.trainer.devices, searching=bool(job.trials))
    check_fp16(trainer.precision, students)  # on a CPU Lightning replaces it
    if cfg.trainer.precision == "auto":
        cfg.trainer.precision = trainer.precision
    with mounted("data"):
        data.divide(trainer.global_rank, trainer.world_size)
    return Plan(cfg, job, study, trainer, costs, profiler, metrics)


def check_settings(cfg: DictConfig) -> None:
    """Refuses values of a config that are out of range, whatever the others are."""
    require_whole("seed", cfg.seed, 0)
    require_switch("profile", cfg.profile)
    require(cfg.seed < 2**32, "seed", cfg.seed, "below 2^32")
    for key in ("runs", "output") if cfg.paths.export is None else ("runs", "output", "export"):
        check_folder(f"paths.{key}", cfg.paths[key])
    students = cfg.architectures
    require(students is None or isinstance(students, ListConfig), "architectures", students, "a list")
    for name in GROUPS:
        part = cfg.get(name)
        fits = isinstance(part, DictConfig) or (part is None and name in OPTIONAL)
        require(fits, name, part, f"a config of conf/{name}")
        if part is not None and "_target_" not in part:  # a setting of a group that was left out
            raise ConfigError(f"{name}: needs a _target_")
    path = cfg.teacher.path
    require(isinstance(path, str) and bool(path), "teacher.path", path, "a folder that holds a model, or a hub id")
    module = plain(cfg.module)
    with mounted("module"):
        check_optimization(*(module.get(name) for name in ("learning_rate", "warmup", "betas", "weight_decay")))
        check_dropout(module.get("dropout"))
        require_switch("compile", module.get("compile", False))


def check_fp16(precision: object, students: int) -> None:
    """Refuses fp16 for a gang."""
    if str(precision) in ("16", "16-mixed") and students > 1:
        raise ConfigError(
            f"trainer.precision={precision}: must be bf16-mixed for a gang, or search.gang=1; "
            "its students would share one loss scale, and the first that overflows would hold up all"
        )


def run_callbacks(cfg: DictConfig, job: Job, own: Sequence[L.Callback]) -> list[L.Callback]:
    """Returns the callbacks of every training; without a progress display if the user has another or none."""
    other = cfg.trainer.get("enable_progress_bar") is False or any(isinstance(one, ProgressBar) for one in own)
    callbacks: list[L.Callback] = [] if other else [Progress(job.title or cfg.title)]
    callbacks += [QuietSteps(), SeedSteps(cfg.seed), LastCheckpoint(Path(cfg.paths.output))]
    return [*callbacks, LeaveSigterm()] if on_slurm() else callbacks


def architecture(values: DictConfig) -> Architecture:
    """Makes an architecture from its five values, or by the config's `_target_`."""
    if not isinstance(values, DictConfig):
        raise ConfigError(f"architectures: {values}: must be the values of an architecture")
    if "_target_" in values:
        return instantiate(values)
    return Architecture.of(OmegaConf.to_container(values, resolve=True))  # type: ignore[arg-type]
