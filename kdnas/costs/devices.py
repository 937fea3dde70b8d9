"""The devices that latencies are measured on, and the names of their models."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch


@dataclass(frozen=True)
class Device:
    """The functions of a kind of device that a measurement calls."""

    available: Callable[[], bool]  # returns whether this machine has one
    synchronize: Callable[[], None] = lambda: None  # waits for all queued work
    clock: Callable[[], float] = time.perf_counter  # returns the time in seconds
    in_use: Callable[[], float] = lambda: 0.0  # returns the share of the device that other programs use


def gpu_in_use(pause: float = 1.2) -> float:
    """Returns the share of time that the current GPU works while this process leaves it idle, from nvidia-smi."""
    time.sleep(pause)  # the driver averages over up to one second
    command = ["nvidia-smi", f"--id=GPU-{torch.cuda.get_device_properties().uuid}", "--query-gpu=utilization.gpu"]
    try:
        return float(output_of([*command, "--format=csv,noheader,nounits"])) / 100
    except ValueError:  # no nvidia-smi, or a MIG device, for which the driver gives no number
        return 0.0


DEVICES = {
    # Processor time does not include waiting for a processor that other programs use.
    "cpu": Device(lambda: True, clock=time.process_time),
    "cuda": Device(torch.cuda.is_available, torch.cuda.synchronize, in_use=gpu_in_use),
    "mps": Device(torch.backends.mps.is_available, torch.mps.synchronize),
}


def available_devices() -> list[str]:
    return [name for name, device in DEVICES.items() if device.available()]


def device_name(device: str) -> str:
    """Returns the name of the model of this machine's `cpu`, `cuda` or `mps`."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{cpu_name()} ({os.cpu_count()} cores)" if device == "cpu" else f"{cpu_name()} {device}"


@cache
def cpu_name() -> str:
    """Returns the name of the processor's model, after that of the board, where the system knows it."""
    board = _text("/proc/device-tree/model").strip("\0 \n")
    return ", ".join(filter(None, [board, _processor()]))


def _processor() -> str:
    """Returns the first name that a source of the system gives; for an ARM, /proc/cpuinfo has only numbers."""
    cpuinfo = _text("/proc/cpuinfo")
    for name in (
        _field("model name", cpuinfo),
        _field("Model name", output_of(["lscpu"], LC_ALL="C")),
        output_of(["sysctl", "-n", "machdep.cpu.brand_string"]) if platform.system() == "Darwin" else "",
        _field("cpu model", cpuinfo) or _field("cpu", cpuinfo),
        _numbers(cpuinfo),
        platform.processor(),
    ):
        if name.strip(" -") and name.lower() not in ("unknown", platform.machine().lower()):
            return name
    return platform.machine()


def _numbers(cpuinfo: str) -> str:
    """Returns an ARM's implementer and part, as `aarch64 41/d0c`; big and little cores are two parts."""
    makers, parts = (
        "+".join(sorted(set(re.findall(rf"^CPU {name}\s*: 0x(\w+)", cpuinfo, re.MULTILINE))))
        for name in ("implementer", "part")
    )
    return f"{platform.machine()} {makers}/{parts}" if makers and parts else ""


def _field(name: str, text: str) -> str:
    """Returns all values of a name in `name : value` lines: big and little cores have two."""
    found = re.findall(rf"^[ \t]*{name}[ \t]*:[ \t]*(.*\S)", text, re.MULTILINE)
    return " + ".join(dict.fromkeys(found))


def _text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text(errors="replace")
    return ""


def output_of(command: list[str], **environment: str) -> str:
    """Runs a system command and returns its output; empty if it does not exist or fails."""
    with suppress(OSError, subprocess.SubprocessError):
        variables = os.environ | environment
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=variables)
        return done.stdout.strip()
    return ""
