"""A Lightning callback that computes the students' rewards and reports them to the study."""

import math
import time
from collections.abc import Sequence

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from kdnas.base.errors import mounted
from kdnas.callbacks.latency import LatencyBenchmark
from kdnas.modules.distiller import StudentDistiller
from kdnas.search.reward import Reward
from kdnas.search.study import Study


class ControllerUpdate(L.Callback):
    """Reports each student's trial, with its `export` folder, after the final validation; the controller learns."""

    def __init__(
        self, study: Study, trials: Sequence[int], reward: Reward, latency: LatencyBenchmark, export: str | None = None
    ) -> None:
        self.study, self.trials, self.reward, self.latency = study, list(trials), reward, latency
        self.export = export
        self._start = time.monotonic()

    def on_fit_start(self, trainer: L.Trainer, module: StudentDistiller) -> None:
        self._start = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, module: StudentDistiller) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        if trainer.state.fn != TrainerFn.VALIDATING:
            for trial, metrics in zip(self.trials, module.results, strict=True):
                self.study.report(trial, trainer.current_epoch + 1, metrics)
            return
        seconds = (time.monotonic() - self._start) / len(self.trials)
        self.latency.measure_again(module)
        self.study.teacher = teacher = self.latency.teacher
        if teacher.busy:  # estimates differ between jobs, and rewards must be comparable
            teacher = self.study.teacher or teacher
        students = zip(self.trials, module.results, self.latency.students, strict=True)
        for i, (trial, metrics, cost) in enumerate(students):
            if i in module.lost:
                continue
            if i in module.diverged:
                self.study.fail(trial, f"diverged: {module.diverged[i]}")
                continue
            with mounted("reward"):
                reward = self.reward(metrics, cost, teacher)
            if math.isfinite(reward):
                busy = cost.busy or teacher.busy
                self.study.tell(trial, reward, metrics, cost, seconds=seconds, export=self.export, estimated=busy)
            else:
                self.study.fail(trial, f"no reward: held-out {', '.join(f'{k} {v}' for k, v in metrics.items())}")
        # Lost students get jobs of their own, with more memory. Last: a gang is resumed with all of its members.
        self.study.split([self.trials[i] for i in module.lost])
