"""The results of an evaluation of proxies as tables: a row a proxy, and a row a training."""

from typing import Any

import pandas as pd

from kdnas.reports.cells import cells, cost_columns
from kdnas.reports.proxy.results import Comparison, Rankings
from kdnas.search.fidelity import RANKED_BY


def table(found: Comparison) -> pd.DataFrame:
    """Makes the table of the proxies.

    Columns: `epochs`, `data` and `passes` (their product); for `quality` and `reward` Kendall's `tau ...` between proxy
    and full distillation, its bounds `... low` and `... high`, and `place of best ...`: the place that the proxy's best
    architecture has after full distillation; `seconds` of training one architecture, `share of full` (of the time of a
    full distillation), `architectures` (their number), and `recommended`.
    """
    rows = []
    for one in found.scores:
        row: dict[str, Any] = {**one.proxy.to_dict(), "passes": one.proxy.passes}
        for name in RANKED_BY:
            tau = one.taus[name]
            row |= {f"tau {name}": tau.value, f"tau {name} low": tau.low, f"tau {name} high": tau.high}
            row[f"place of best {name}"] = one.best[name]
        row |= {"seconds": one.seconds, "share of full": one.share, "architectures": len(found.full.seen)}
        rows.append(row | {"recommended": one == found.passing})
    return pd.DataFrame(rows)


def trainings(found: Comparison) -> pd.DataFrame:
    """Makes the table of all trainings that are compared.

    Columns: `training` (proxy or full), `epochs` and `data` of a proxy, `architecture` and its five values, `held-out
    loss` and the other held-out metrics, `reward`, `seconds`, and those of `cost_columns`.
    """
    return pd.DataFrame([row for one in (*found.proxies, found.full) for row in _rows(one)])


def _rows(ranked: Rankings) -> list[dict[str, Any]]:
    proxy = ranked.proxy
    how = {"training": "proxy", **proxy.to_dict()} if proxy else {"training": "full", "epochs": None, "data": None}
    return [
        how
        | {"architecture": str(one.architecture), **one.architecture.to_dict()}
        | {f"held-out {name}": value for name, value in one.metrics.items()}
        | {"reward": one.reward, "seconds": one.seconds, **cost_columns(one.cost)}
        for one in ranked.seen
    ]


def as_text(found: Comparison) -> pd.DataFrame:
    """Formats the table of the proxies as text; the recommended one is marked."""
    frame = table(found)
    text = {
        "": frame["recommended"].map({True: "*", False: ""}),
        "epochs": cells(frame["epochs"], "{:d}"),
        "data": cells(100 * frame["data"], "{:g} %"),
        "passes": cells(frame["passes"], "{:g}"),
    }
    for name, of in zip(RANKED_BY, (found.metric, "reward"), strict=True):
        low, high = (cells(frame[f"tau {name} {bound}"], "{:.2f}", "–") for bound in ("low", "high"))
        text[f"τ of {of}"] = cells(frame[f"tau {name}"], "{:.2f}", "–") + " [" + low + ", " + high + "]"
        text[f"# by {of}"] = cells(frame[f"place of best {name}"], "{:d}")
    text["seconds"] = cells(frame["seconds"], "{:.3g}")
    text["of a full one"] = cells(100 * frame["share of full"], "{:.3g} %")
    return pd.DataFrame(text, dtype=object)
