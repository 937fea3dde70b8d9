"""The cost model: parameters, FLOPs and latencies of any model, by its config."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from kdnas.base.errors import ConfigError, is_number, require
from kdnas.base.host import QuietHost
from kdnas.base.shared import forget, shared
from kdnas.costs.cost import Cost, Latency
from kdnas.costs.devices import available_devices
from kdnas.costs.disturbance import load
from kdnas.costs.key import table_key
from kdnas.costs.measure import measure
from kdnas.costs.runtimes import Runtime, Torch, runtime_for
from kdnas.costs.table import LatencyTable
from kdnas.costs.targets import TORCH, Protocol, Target
from kdnas.models.counting import count_flops, count_parameters

log = logging.getLogger(__name__)
LONGEST = 10.0  # the longest pause in seconds between two attempts to measure; pauses begin at one second and double


class CostModel:
    """Finds what models cost. A latency is measured once for each architecture, target and protocol, then looked up.

    A latency that was measured on a busy host is returned, marked as such, and not stored.

    Args:
        accelerators: the targets, as `cpu` or `cuda/bf16` (see `Target`); None for all devices of this machine.
        patience: seconds that a process waits for a quiet host.
        fresh: whether to measure anew, once in a process, latencies that the table holds.
        runtimes: the runtimes that a target can name; None for torch alone.
        protocol: fields of `kdnas.costs.Protocol`.

    Raises:
        ConfigError: a setting out of range, or a target that this machine cannot measure.
    """

    def __init__(
        self,
        table: str,
        accelerators: Sequence[str] | None = None,
        patience: float = 60.0,
        fresh: bool = False,
        runtimes: Mapping[str, Runtime] | None = None,
        **protocol: Any,
    ) -> None:
        require(not isinstance(accelerators, str), "accelerators", accelerators, f"a list, as [{accelerators}]")
        require(is_number(patience) and patience >= 0, "patience", patience, "a number of seconds from 0")
        self.targets = list(map(Target.of, available_devices() if accelerators is None else accelerators))
        if not self.targets:
            raise ConfigError.of("accelerators", "=[]: must name at least one")
        self._runtimes = {target: runtime_for(target, runtimes or {TORCH: Torch()}) for target in self.targets}
        self.protocol, self.patience = Protocol(**protocol), patience
        self.table = LatencyTable(Path(table), fresh)
        self.host = QuietHost()

    def cost(self, config: PreTrainedConfig) -> Cost:
        """Returns what a model of this config costs; latencies that the table lacks are measured now."""
        latency = {str(target): self.latency(config, target) for target in self.targets}
        flops = count_flops(config, self.protocol.batch_size, self.protocol.length)
        return Cost(count_parameters(config), flops, latency)

    def teacher_cost(self, config: PreTrainedConfig) -> Cost:
        """Returns the teacher's cost, found once for all candidates of a process unless the host was busy."""
        key = (config.to_json_string(), self.table.path, tuple(self.targets), self.protocol)
        cost = shared("teacher's cost", key, lambda: self.cost(config))
        if cost.busy:
            forget("teacher's cost")
        return cost

    def latency(self, config: PreTrainedConfig, target: Target) -> Latency:
        """Looks a latency up or, if the table lacks it, measures it while the host is quiet and stores it."""
        key = table_key(config, target, self._runtimes[target], self.protocol.on(target))
        if found := self.table.find(key):
            return found
        wait = shared("wait for a quiet host", None, QuietWait)
        while True:
            with self.host.quiet():
                found = self.table.find(key)  # another process may have measured it meanwhile
                if not found:
                    found = self.measure(config, target)
                    self.table.add(key, found)
            if not found.busy:
                wait.restart()
                return found
            # Waits without the lock, so that this user's other processes go on meanwhile.
            if not wait.pause(self.patience):
                return found

    def measure(self, config: PreTrainedConfig, target: Target) -> Latency:
        """Measures a latency now, whether or not the table has it, and does not store it."""
        return measure(config, target, self._runtimes[target], self.protocol.on(target))


class QuietWait:
    """Pauses between attempts to measure, until one was undisturbed or a time limit is reached.

    All measurements of a process share one object: a host that was busy until the limit is likely to stay busy, so that
    the next measurement gets a single attempt.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Resets the time limit after an undisturbed measurement."""
        self._since: float | None = None
        self._next = 1.0
        self._warned = False

    def pause(self, limit: float) -> bool:
        """Pauses before another attempt; returns False if `limit` seconds have passed since the first disturbed one."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        left = self._since + limit - now
        if left <= 0:
            if not self._warned:
                log.warning("the host is busy (load %.1f): latencies are estimates until it is quiet", load())
                self._warned = True
            return False
        pause = min(self._next, left)
        message = "the host is busy (load %.1f): measuring latency again in %.0f s, for %.0f s at most"
        log.info(message, load(), pause, left)
        self._next = min(2 * self._next, LONGEST)
        time.sleep(pause)
        return True
