"""A Lightning callback that measures the students' cost (latency, parameters, FLOPs) before they are trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from transformers import PreTrainedConfig

from kdnas.base.errors import ConfigError
from kdnas.base.shared import forget, shared
from kdnas.costs import LatencyTable, Protocol, check_accelerators
from kdnas.costs.accelerators import available_accelerators
from kdnas.costs.cost import Cost
from kdnas.models.counting import count_flops, count_parameters
from kdnas.modules.distiller import StudentDistiller

log = logging.getLogger(__name__)


class LatencyBenchmark(L.Callback):
    """Measures teacher and students on each accelerator, once for each architecture, device and protocol.

    In a training on several devices, only the first process measures; the others wait.

    Args:
        table: the file of the latency table.
        accelerators: any of cpu, cuda, mps; None for all that this machine has.
        patience: seconds that a process waits for a quiet host.
        fresh: whether to measure anew, once in a process, latencies that the table holds.
        protocol: fields of `kdnas.costs.Protocol`.
    """

    def __init__(
        self,
        table: str,
        accelerators: Sequence[str] | None = None,
        patience: float = 60.0,
        fresh: bool = False,
        **protocol: Any,
    ) -> None:
        if isinstance(accelerators, str):
            raise ConfigError(f"latency.accelerators={accelerators}: must be a list, as [{accelerators}]")
        self.accelerators = list(accelerators) if accelerators is not None else available_accelerators()
        if not self.accelerators:
            raise ConfigError("latency.accelerators=[]: must name at least one")
        check_accelerators(self.accelerators)
        self.protocol = Protocol(**protocol)
        self.table = LatencyTable(Path(table), patience, fresh)
        self.teacher: Cost
        self.students: list[Cost] = []
        self._configs: list[PreTrainedConfig] = []

    def cost(self, config: PreTrainedConfig) -> Cost:
        latency = {name: self.table.latency(config, name, self.protocol) for name in self.accelerators}
        flops = count_flops(config, self.protocol.batch_size, self.protocol.length)
        return Cost(count_parameters(config), flops, latency)

    def teacher_cost(self, config: PreTrainedConfig) -> Cost:
        """Returns the teacher's cost, measured once for all candidates of a process unless the host was busy."""
        key = (config.to_json_string(), self.table.path, tuple(self.accelerators), self.protocol)
        cost = shared("teacher's cost", key, lambda: self.cost(config))
        if cost.busy:
            forget("teacher's cost")
        return cost

    def on_fit_start(self, trainer: L.Trainer, module: StudentDistiller) -> None:
        if not trainer.is_global_zero:
            return
        self._configs = [student.model.config for student in module.trainees]
        self.teacher = self.teacher_cost(module.teacher_config)
        self.students = [self.cost(config) for config in self._configs]
        for architecture, cost in zip(module.architectures, self.students, strict=True):
            for name, latency in cost.latency.items():
                speedup = self.teacher.latency[name].median / latency.median
                log.info(
                    "%s: %.2f ± %.2f ms on %s%s, %.1f times as fast as the teacher, %.1fM parameters",
                    *(architecture, latency.median, latency.spread, name, ", a busy host" * latency.busy),
                    *(speedup, cost.parameters / 1e6),
                )

    def measure_again(self, module: StudentDistiller) -> None:
        """Repeats the measurements that were made on a busy host when training began."""
        if self.teacher.busy:
            self.teacher = self.teacher_cost(module.teacher_config)
        pairs = zip(self._configs, self.students, strict=True)
        self.students = [self.cost(config) if cost.busy else cost for config, cost in pairs]
