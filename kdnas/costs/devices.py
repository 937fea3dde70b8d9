"""The kinds of devices that latencies are measured on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kdnas.costs.device_names import output_of


@dataclass(frozen=True)
class Device:
    """What a measurement needs of a kind of device.

    Attributes:
        available: returns whether this machine has one.
        synchronize: waits for all queued work.
        clock: returns the time in seconds; on a CPU, processor time, which does not include waiting for a processor
            that other programs use.
        in_use: returns the share of the device that other programs use.
    """

    available: Callable[[], bool]
    synchronize: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.perf_counter
    in_use: Callable[[], float] = lambda: 0.0


def gpu_in_use(pause: float = 1.2) -> float:
    """Returns the share of time that the current GPU works while this process leaves it idle, from nvidia-smi.

    Args:
        pause: seconds to leave the GPU idle before; the driver averages over up to one second.
    """
    time.sleep(pause)
    command = ["nvidia-smi", f"--id=GPU-{torch.cuda.get_device_properties().uuid}", "--query-gpu=utilization.gpu"]
    try:
        return float(output_of([*command, "--format=csv,noheader,nounits"])) / 100
    except ValueError:  # no nvidia-smi, or a MIG device, for which the driver gives no number
        return 0.0


DEVICES = {
    "cpu": Device(lambda: True, clock=time.process_time),
    "cuda": Device(torch.cuda.is_available, torch.cuda.synchronize, in_use=gpu_in_use),
    "mps": Device(torch.backends.mps.is_available, torch.mps.synchronize),
}


def available_devices() -> list[str]:
    return [name for name, device in DEVICES.items() if device.available()]
