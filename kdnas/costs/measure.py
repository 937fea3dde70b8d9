"""Measures the latency of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from kdnas.base.errors import ConfigError, require, require_whole
from kdnas.costs.accelerators import ACCELERATORS
from kdnas.costs.cost import Latency
from kdnas.costs.disturbance import Others, Timing, time_once
from kdnas.models.building import new_encoder
from kdnas.models.families import family_of

MANY = 1024
"""The most threads that are accepted; no host has as many."""
HOPELESS = 5
"""A run is given up when so many more inferences were disturbed than undisturbed."""
WIDE = 0.25
"""The largest ratio of spread to median of a reliable latency; on a quiet host it is 2 to 10 %."""


@dataclass(frozen=True)
class Protocol:
    """The settings of a latency measurement.

    Args:
        batch_size, length: the shape of the input; every position is a real token.
        threads: the number of CPU threads during the measurement.
        warmup: the number of inferences before those that are counted.
        repeats: the number of counted inferences of one run.
        runs: the number of runs, each with a new model, so that an unlucky memory layout shows in the spread.
        dtype: the dtype of weights and activations, as torch names it.
    """

    batch_size: int = 1
    length: int = 128
    threads: int = 1
    warmup: int = 5
    repeats: int = 30
    runs: int = 3
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("batch_size", "length", "threads", "repeats", "runs"):
            require_whole(f"latency.{name}", getattr(self, name), 1)
        require_whole("latency.warmup", self.warmup, 0)
        # torch starts any number of threads, or crashes.
        require(self.threads <= MANY, "latency.threads", self.threads, f"at most {MANY}")
        dtype = getattr(torch, str(self.dtype), None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ConfigError(f"latency.dtype={self.dtype}: must be a torch dtype, as float32, bfloat16 or float16")

    def check(self, config: PreTrainedConfig) -> None:
        """Refuses a length that models of this config cannot take."""
        longest = family_of(config).positions(config)
        require(self.length <= longest, "latency.length", self.length, f"at most {longest}")


def measure(model: PreTrainedModel, accelerator: str, protocol: Protocol) -> list[Timing]:
    """Times inferences until `repeats` of them were undisturbed, or until most of them are disturbed."""
    device = ACCELERATORS[accelerator]
    model = model.eval().to(accelerator, dtype=getattr(torch, protocol.dtype))
    tokens = torch.full((protocol.batch_size, protocol.length), 1, dtype=torch.long, device=accelerator)
    mask = torch.ones_like(tokens)

    def infer() -> None:
        model(input_ids=tokens, attention_mask=mask)
        device.synchronize()

    threads = torch.get_num_threads()
    torch.set_num_threads(protocol.threads)
    timings: list[Timing] = []
    undisturbed = 0
    try:
        with torch.inference_mode():
            for _ in range(protocol.warmup):
                infer()
            device.synchronize()
            while undisturbed < protocol.repeats and len(timings) <= 2 * undisturbed + HOPELESS:
                timings.append(time_once(infer, device.clock))
                undisturbed += timings[-1].undisturbed
    finally:
        torch.set_num_threads(threads)
    return timings


def measure_config(config: PreTrainedConfig, accelerator: str, protocol: Protocol) -> Latency:
    """Measures a model of this config, randomly initialised: latency does not depend on weights.

    Median and spread are over undisturbed inferences. On a host that is too busy for enough of them, both are an
    estimate from all inferences, and the latency is marked `busy`. It is also marked so if its spread is wide, or if
    other programs used too much of the host or of the accelerator meanwhile.
    """
    protocol.check(config)
    in_use = ACCELERATORS[accelerator].used_by_others() > WIDE
    others = Others(protocol.threads)
    timings: list[Timing] = []
    enough = True
    for _ in range(protocol.runs):
        run = measure(new_encoder(config, seed=0), accelerator, protocol)
        timings += run
        enough = sum(timing.undisturbed for timing in run) >= protocol.repeats
        if not enough:
            break
    times = [timing.elapsed for timing in timings if timing.undisturbed] if enough else [t.own for t in timings]
    low, median, high = np.percentile(times, [5, 50, 95])
    spread = float(high - low) / 2
    disturbed = not enough or in_use or others.disturb()
    return Latency(float(median), spread, busy=disturbed or not reliable(float(median), spread))


def reliable(median: float, spread: float) -> bool:
    """Returns whether a spread is as narrow as on a quiet host."""
    return spread <= WIDE * median
