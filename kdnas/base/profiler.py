"""Where the time of a run goes: `profile=true`."""

import re
import time
from collections import defaultdict
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from lightning.pytorch.profilers import Profiler

PARTS = {
    "models and data": "models and data",
    "latency": r"\[Callback\]LatencyBenchmark",
    "keeping the teacher's outputs": "keep outputs",
    "asking the teacher": "ask teacher",
    "loading batches": r"dataloader_next|batch_to_device",
    "students: forward": r"\.training_step$",
    "students: backward": r"\.backward$|^backward$",
    "students: side by side": "^side by side$",
    "optimizer": r"optimizer_(step|zero_grad)|clipping",
    "held-out rows": r"validation|val_next|^held out$|on_validation",
    "checkpoints and exports": r"[Cc]heckpoint|ExportModels",
    "reports": r"ControllerUpdate|Progress|Logger",
}
"""The rows of the table, by the actions that count for each: Lightning's names, and kdnas's own."""
REST = "everything else"


@cache
def part_of(action_name: str) -> str | None:
    """Returns the row that an action counts for; None if it counts for the action around it."""
    return next((part for part, names in PARTS.items() if re.search(names, action_name)), None)


class TimeTable(Profiler):
    """Measures the seconds of each part of a run, from the first part; a part within another counts only for itself.

    At the end of a part the accelerator is synchronized, so a run is a little slower with a profile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[tuple[str, str]] = []
        self._begin = self._since = time.perf_counter()

    def start(self, action_name: str) -> None:
        if not self.seconds and not self._open:
            self._begin = self._since = time.perf_counter()
        self._count()
        self._open.append((action_name, part_of(action_name) or (self._open[-1][1] if self._open else REST)))

    def stop(self, action_name: str) -> None:
        self._count()
        while self._open and self._open.pop()[0] != action_name:  # an exception left some open
            pass

    def _count(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._open[-1][1] if self._open else REST] += now - self._since
        self._since = now

    def table(self) -> pd.DataFrame:
        """Returns a row for each part, with its `seconds` and its `share` of the run."""
        self._count()
        total = self._since - self._begin
        rows = [
            {"part": part, "seconds": self.seconds[part], "share": self.seconds[part] / total}
            for part in (*PARTS, REST)
            if part in self.seconds
        ]
        return pd.DataFrame([*rows, {"part": "all", "seconds": total, "share": 1.0}])

    def write(self, path: Path) -> str:
        """Writes the table as CSV, and returns it as text."""
        table = self.table()
        table.to_csv(path, index=False)
        shown = {"seconds": "{:.2f}".format, "share": "{:.1%}".format}
        return table.to_string(index=False, formatters=shown)
