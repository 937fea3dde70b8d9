"""A Lightning callback that finds the students' costs (latency, parameters, FLOPs) before they are trained."""

import logging

import lightning as L
from transformers import PreTrainedConfig

from kdnas.base.errors import mounted
from kdnas.costs import Cost, CostModel
from kdnas.modules.distiller import StudentDistiller

log = logging.getLogger(__name__)


class LatencyBenchmark(L.Callback):
    """Finds the costs of teacher and students, in the module's order, when a fit begins; the first process measures."""

    def __init__(self, costs: CostModel) -> None:
        self.costs = costs
        self.teacher: Cost
        self.students: list[Cost] = []
        self._configs: list[PreTrainedConfig] = []

    def on_fit_start(self, trainer: L.Trainer, module: StudentDistiller) -> None:
        if not trainer.is_global_zero:
            return
        self._configs = [student.model.config for student in module.trainees]
        with mounted("latency"):
            self.teacher = self.costs.teacher_cost(module.teacher_config)
            self.students = [self.costs.cost(config) for config in self._configs]
        for architecture, cost in zip(module.architectures, self.students, strict=True):
            for target, latency in cost.latency.items():
                speedup = self.teacher.latency[target].median / latency.median
                log.info(
                    "%s: %.2f ± %.2f ms on %s%s, %.1f times as fast as the teacher, %.1fM parameters",
                    *(architecture, latency.median, latency.spread, target, ", a busy host" * latency.busy),
                    *(speedup, cost.parameters / 1e6),
                )

    def measure_again(self, module: StudentDistiller) -> None:
        """Repeats the measurements that were made on a busy host when training began."""
        pairs = zip(self._configs, self.students, strict=True)
        with mounted("latency"):
            if self.teacher.busy:
                self.teacher = self.costs.teacher_cost(module.teacher_config)
            self.students = [self.costs.cost(config) if cost.busy else cost for config, cost in pairs]
