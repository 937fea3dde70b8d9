"""Lightning callbacks: latency benchmarking, controller updates, export, progress, seeds."""

from kdnas.callbacks.controller import ControllerUpdate
from kdnas.callbacks.export import ExportModels
from kdnas.callbacks.latency import LatencyBenchmark
from kdnas.callbacks.progress import Progress
from kdnas.callbacks.quiet import QuietSteps
from kdnas.callbacks.seeding import SeedSteps
from kdnas.callbacks.signals import LeaveSigterm

__all__ = [
    "ControllerUpdate",
    "ExportModels",
    "LatencyBenchmark",
    "LeaveSigterm",
    "Progress",
    "QuietSteps",
    "SeedSteps",
]
