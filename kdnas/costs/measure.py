"""Measures the latency of a model, by its config."""

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from kdnas.costs.cost import Latency
from kdnas.costs.devices import DEVICES
from kdnas.costs.disturbance import OtherPrograms, Timing, time_once
from kdnas.costs.runtimes import Runtime
from kdnas.costs.targets import Protocol, Target
from kdnas.models.building import new_encoder

GIVE_UP = 5  # a run ends early when so many more inferences were disturbed than undisturbed
WIDE = 0.25  # the largest ratio of spread to median of a reliable latency; on a quiet host it is 2 to 10 %


def measure(config: PreTrainedConfig, target: Target, runtime: Runtime, protocol: Protocol) -> Latency:
    """Measures a model of this config, randomly initialised: latency does not depend on weights.

    Median and spread are over undisturbed inferences. On a host that is too busy for enough of them, both are an
    estimate from all inferences, and the latency is marked `busy`. It is also marked so if its spread is wide, or if
    other programs used too much of the host or of the device meanwhile. Raises a ConfigError if the model cannot take
    an input of the protocol's length.
    """
    protocol.check(config)
    in_use = DEVICES[target.device].in_use() > WIDE
    others = OtherPrograms(protocol.threads)
    timings: list[Timing] = []
    enough = True
    for _ in range(protocol.runs):
        run = time_run(new_encoder(config, seed=0), target, runtime, protocol)
        timings += run
        enough = sum(timing.undisturbed for timing in run) >= protocol.repeats
        if not enough:
            break
    times = [timing.elapsed for timing in timings if timing.undisturbed] if enough else [t.own for t in timings]
    low, median, high = np.percentile(times, [5, 50, 95])
    spread = float(high - low) / 2
    disturbed = not enough or in_use or others.disturb()
    return Latency(float(median), spread, busy=disturbed or not reliable(float(median), spread))


def time_run(model: PreTrainedModel, target: Target, runtime: Runtime, protocol: Protocol) -> list[Timing]:
    """Times inferences until `repeats` of them were undisturbed, or until most of them are disturbed."""
    device = DEVICES[target.device]
    infer = runtime.load(model, target, protocol)
    threads = torch.get_num_threads()
    torch.set_num_threads(protocol.threads)
    timings: list[Timing] = []
    undisturbed = 0
    try:
        with torch.inference_mode():
            for _ in range(protocol.warmup):
                infer()
            device.synchronize()
            while undisturbed < protocol.repeats and len(timings) <= 2 * undisturbed + GIVE_UP:
                timings.append(time_once(infer, device.clock))
                undisturbed += timings[-1].undisturbed
    finally:
        torch.set_num_threads(threads)
    return timings


def reliable(median: float, spread: float) -> bool:
    """Returns whether a spread is as narrow as on a quiet host."""
    return spread <= WIDE * median
