"""Notes on the results, a sentence each."""

import math
from collections import Counter
from textwrap import shorten

from kdnas.reports.cells import BUSY_NOTE
from kdnas.reports.results import Results

NO_CANDIDATE = "No candidate has finished."
ARCHITECTURE = "Architectures are [layers, attention heads, hidden size, intermediate size, activation]."
FEW = 0.25  # a search counts as a random search if the controller has chosen less than this share of its candidates


def notes(results: Results) -> list[str]:
    """Returns every note that the results need."""
    busy = BUSY_NOTE if results.busy else ""
    precision = f"every candidate was trained in {results.precision}." if results.precision else ""
    found = [chance(results), random_search(results), busy, failures(results), precision]
    return [note for note in found if note]


def chance(results: Results) -> str:
    """Returns a note if no candidate is better than a constant prediction, by more than a standard error."""
    metric = results.metric
    if metric is None or metric not in results.chance or not results.ranking:
        return ""
    known = results.chance[metric]
    limit = known + standard_error(known, results.rows)
    best = max(one.mini.metrics.get(metric, -math.inf) for one in results.ranking)
    full = max((one.full.metrics.get(metric, -math.inf) for one in results.ranking if one.full), default=None)
    if best > limit:
        return ""
    note = f"no candidate is above chance: after mini-KD the best {metric} is {best:.3g}"
    note += f", a constant prediction has {known:.3g}"
    if full is not None and full > limit:
        note += f" (the finalists reach {full:.3g}, but mini-KD had no grounds to choose them)"
    elif full is not None:
        note += f", and the finalists' best is {full:.3g}"
    return f"{note}; train longer (search.stages.mini: epochs, or a larger data.proxy)."


def standard_error(value: float, rows: int | None) -> float:
    """Returns the standard error of a metric over so many rows: of a share, by the binomial distribution."""
    if not rows:
        return 0.0
    variance = value * (1 - value) if 0 < value < 1 else 1.0  # of a correlation near 0
    return math.sqrt(variance / rows)


def random_search(results: Results) -> str:
    """Returns a note if the controller has chosen few of the candidates."""
    origins = Counter(one.mini.origin for one in results.ranking)
    total, chosen = origins.total(), origins["controller"]
    if not total or chosen >= FEW * total:
        return ""
    return (
        f"this was a random search: the controller chose {chosen or 'none'} of the {total} that finished; "
        "it needs more episodes (search.episodes) to choose more."
    )


def failures(results: Results) -> str:
    """Returns a note on the failed candidates, with the last reason."""
    if not results.failed:
        return ""
    reasons = [str(trial.user_attrs["reason"]) for trial in results.failed if "reason" in trial.user_attrs]
    last = f"; the last reason: {shorten(reasons[-1], 160)}" if reasons else ""
    return f"{len(results.failed)} failed{last}"
