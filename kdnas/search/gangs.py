"""Gangs: the trials that one job trains together, on one forward pass of the teacher."""

from collections import Counter
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from kdnas.models.architecture import Architecture


def balanced(architectures: Sequence[Architecture], gang: int) -> list[Architecture]:
    """Orders architectures so that each `gang` consecutive ones have about as many weights in total as the others."""
    if gang == 1:
        return list(architectures)
    full, rest = divmod(len(architectures), gang)
    seats = [gang] * full + [rest] * bool(rest)
    gangs: list[list[Architecture]] = [[] for _ in seats]
    for one in sorted(architectures, key=lambda one: -one.size):
        roomy = (place for place, seat in enumerate(seats) if len(gangs[place]) < seat)
        gangs[min(roomy, key=lambda place: sum(other.size for other in gangs[place]))].append(one)
    return [one for members in gangs for one in members]


def unfinished(trials: Sequence[FrozenTrial]) -> list[list[FrozenTrial]]:
    """Returns the gangs that have running trials, as they were proposed, with their finished members, from all trials.

    Every `gang` consecutive trials of an episode are a gang, except those with the attribute `alone`.
    """
    running = {trial.user_attrs["episode"] for trial in trials if trial.state == TrialState.RUNNING}
    places: Counter[int] = Counter()
    gangs: dict[tuple[int, ...], list[FrozenTrial]] = {}
    for trial in trials:
        episode, size = trial.user_attrs["episode"], trial.user_attrs.get("gang", 1)
        if episode not in running:
            continue
        key = (episode, trial.number, 1) if trial.user_attrs.get("alone") else (episode, places[episode] // size)
        places[episode] += 1
        gangs.setdefault(key, []).append(trial)
    return [gang for gang in gangs.values() if any(trial.state == TrialState.RUNNING for trial in gang)]
