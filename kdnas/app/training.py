"""One training, from its settings to its results: what `train.py` runs, and each candidate and finalist of a search."""

import logging
from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig

from kdnas.app.build import build
from kdnas.app.fit import fit
from kdnas.app.preflight import Plan, preflight
from kdnas.app.publish import publish
from kdnas.app.teacher import ensure_teacher
from kdnas.base.run_folder import at_work, earlier_results, withdraw
from kdnas.search.job import Job
from kdnas.search.study import Study

log = logging.getLogger(__name__)


def train(cfg: DictConfig, job: Job, study: Study | None) -> dict[str, float]:
    """Runs one training, unless it has finished before; returns the first model's held-out metrics."""
    results, fresh = complete(preflight(cfg, job, study))
    if not fresh:
        withdraw()
    return results


def complete(plan: Plan) -> tuple[dict[str, float], bool]:
    """Trains to the end; returns the first model's metrics, and whether they are new, not read from an earlier run."""
    # A job of a search has locked its folder, and the prepare job has made the teacher.
    with nullcontext() if plan.study or not plan.first else at_work(plan.output):
        if not plan.study:
            ensure_teacher(plan.cfg, complete)
        if results := finished(plan):
            return results, False
        with plan.profiler.profile("models and data"):
            module, data = build(plan)
        if results := finished(plan, data.digest):
            return results, False
        compared = fit(plan, module, data)
        return publish(plan, module, data, compared), True


def finished(plan: Plan, rows: str | None = None) -> dict[str, float] | None:
    """Returns the first model's results if the same run has finished in its folder before; None for trials of a search.

    `rows` is the digest of the data, once it has been read.
    """
    if plan.study:
        return None
    results, export = earlier_results(plan.output, plan.cfg, rows), plan.cfg.paths.export
    if results is None or (export and not Path(export).is_dir()):
        return None
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in results[0].items())
    log.info("%s: already finished in %s: %s", plan.cfg.title, plan.output, metrics)
    return results[0]
