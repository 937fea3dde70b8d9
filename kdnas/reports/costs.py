"""The columns of a model's cost, in every table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from kdnas.costs.cost import Cost


def cost_columns(cost: Cost | None) -> dict[str, Any]:
    """Returns the values of a model's cost by column; none if the cost is not known.

    `latency DEVICE (ms)` is the median and `spread DEVICE (ms)` half the width of the middle 90 %; `busy DEVICE` is
    whether the host was busy, so that the latency is unreliable.
    """
    if cost is None:
        return {}
    row: dict[str, Any] = {"parameters (M)": cost.parameters / 1e6, "FLOPs (G)": cost.flops / 1e9}
    for device, latency in cost.latency.items():
        row[f"latency {device} (ms)"] = latency.median
        row[f"spread {device} (ms)"] = latency.spread
        row[f"busy {device}"] = latency.busy
    return row


def latency_columns(device: str) -> list[str]:
    """Returns the names of a device's columns."""
    return [f"latency {device} (ms)", f"spread {device} (ms)", f"busy {device}", f"speed-up {device}"]


def devices(frame: pd.DataFrame) -> list[str]:
    """Returns the devices whose latencies a table has."""
    return [name.removeprefix("latency ").removesuffix(" (ms)") for name in frame if str(name).startswith("latency ")]


def speed_ups(frame: pd.DataFrame, teacher: Mapping[str, float]) -> dict[str, pd.Series]:
    """Returns a column `speed-up DEVICE` for each device of the teacher: its latency over the row's.

    Args:
        teacher: the teacher's median latency in ms on each device.
    """
    return {f"speed-up {device}": median / frame[f"latency {device} (ms)"] for device, median in teacher.items()}
