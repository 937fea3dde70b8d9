"""The papers' Feedback Controller as an Optuna sampler (KD-NAS v1, §3.3 and Algorithm 1; v2, III-A and III-B).

Optuna's own samplers are the other controllers. Torch is imported when there is something to learn from, so that a
command line that only reads configs starts fast.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import intersection_search_space
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdnas.architecture import ENUMERABLE
from kdnas.errors import is_number, require, require_whole

if TYPE_CHECKING:
    from kdnas.search.predictor import State

POOL = 10_000
"""Random points that stand for a space with too many to list."""
LARGEST = 1_000
"""A dimension with more values than this is treated as continuous: they are too many to learn one by one."""


class Grid:
    """The points of a space's finite dimensions. A *state* is the index of a point's value in each of them."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.distributions = {name: d for name, d in space.items() if 1 < _size(d) <= LARGEST}
        self.sizes = [int(_size(d)) for d in self.distributions.values()]

    def points(self, seed: str) -> list[State]:
        """Every state, in order; where they are too many, a random pool of them."""
        if math.prod(self.sizes) <= ENUMERABLE:
            return list(itertools.product(*map(range, self.sizes)))
        rng = Random(seed)
        return list(dict.fromkeys(tuple(rng.randrange(size) for size in self.sizes) for _ in range(POOL)))

    def params(self, state: State) -> dict[str, Any]:
        return {name: _value(d, index) for (name, d), index in zip(self.distributions.items(), state, strict=True)}

    def state(self, trial: FrozenTrial) -> State | None:
        """The one that a trial has, or waits to run; None if that is not of this grid."""
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        try:
            return tuple(_index(d, params[name]) for name, d in self.distributions.items())
        except (KeyError, ValueError):
            return None


class FeedbackSampler(BaseSampler):
    """Proposes the states whose reward an LSTM predicts to be highest, then random ones.

    All it knows follows from the study's finished trials and the seeds: the predictor is trained over again when
    they change. A trial belongs to the episode in its user attribute `episode`, else to its number over
    `candidates`, and takes no place there if it has the attribute `rejected`. On the trials it proposes it leaves
    the attributes `origin` (`controller` or `random`) and `prediction` (None while nothing has been learned).

    Args:
        candidates: N, how many states an episode proposes.
        epsilon: the share of them that is random in the first episode, ...
        epsilon_decay: ... what it falls by with each, ...
        epsilon_min: ... and where it stops.
        hidden_size: cells of the LSTM.
        embedding: width of a dimension's embedding.
        learning_rate: RMSProp's in the first episode.
        decay: what the learning rate is multiplied by after an episode.
        epochs: how often an episode's training goes through its pairs.
        replay: whether these pairs are all so far, or only the episode's own, as in the papers.
        standardise: whether to bring the rewards so far to mean 0 and deviation 1 before training.
        seed: of the random states.
        model_seed: of the initial weights and best states; `seed`, if not given. It has to stay the same throughout
            a search, or the predictor would not carry over from one episode to the next.
        cache: a file for the trained predictor, which other processes load in place of training it again.

    Raises:
        ConfigError: an argument out of its range.
    """

    def __init__(
        self,
        *,
        candidates: int,
        epsilon: float = 1.0,
        epsilon_decay: float = 0.05,
        epsilon_min: float = 0.05,
        hidden_size: int = 32,
        embedding: int = 8,
        learning_rate: float = 3e-3,
        decay: float = 0.95,
        epochs: int = 10,
        replay: bool = True,
        standardise: bool = True,
        seed: int | None = None,
        model_seed: int | None = None,
        cache: str | Path | None = None,
    ) -> None:
        counts = dict(candidates=candidates, hidden_size=hidden_size, embedding=embedding, epochs=epochs)
        for name, count in counts.items():
            require_whole(f"controller.{name}", count, 1)
        shares = dict(epsilon=epsilon, epsilon_decay=epsilon_decay, epsilon_min=epsilon_min, decay=decay)
        for name, share in shares.items():
            require(is_number(share) and 0 <= share <= 1, f"controller.{name}", share, "from 0 to 1")
        rated = is_number(learning_rate) and learning_rate > 0
        require(rated, "controller.learning_rate", learning_rate, "a number above 0")
        self.candidates = candidates
        self.epsilon, self.epsilon_decay, self.epsilon_min = epsilon, epsilon_decay, epsilon_min
        self.seed = SystemRandom().getrandbits(32) if seed is None else seed
        self.training: dict[str, Any] = dict(
            hidden_size=hidden_size,
            embedding=embedding,
            learning_rate=learning_rate,
            decay=decay,
            epochs=epochs,
            replay=replay,
            standardise=standardise,
            seed=self.seed if model_seed is None else model_seed,
        )
        self.cache = None if cache is None else Path(cache)
        self._memo: tuple[str, dict[State, float]] = ("", {})

    # -- what Optuna calls

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._raise_error_if_multi_objective(study)
        return Grid(intersection_search_space(study.get_trials(deepcopy=False))).distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._raise_error_if_multi_objective(study)
        grid = Grid(search_space)
        others = {
            name: self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
            if name not in grid.distributions
        }
        return {**others, **grid.params(self._choose(study, trial, grid))}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        self._raise_error_if_multi_objective(study)
        seed = Random(f"{self.seed}/{trial.number}/{param_name}").getrandbits(32)
        return RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Trains if this trial is the last of its episode, so that the next one finds the predictor ready."""
        finished = copy.copy(trial)
        finished.state, finished.values = state, values  # the setter takes None
        trials = [finished if other.number == trial.number else other for other in study.get_trials(deepcopy=False)]
        episode = self._episode(trial)
        members = self._members(trials, episode)
        if len(members) >= self.candidates and all(member.state.is_finished() for member in members):
            self._predictions(study, trials, Grid(intersection_search_space(trials)), before=episode + 1)

    def expected(self, study: Study) -> list[tuple[dict[str, Any], float]]:
        """Every point of the study's space, with the objective value to expect of it after all its trials."""
        trials = study.get_trials(deepcopy=False)
        grid = Grid(intersection_search_space(trials))
        predictions = self._predictions(study, trials, grid, before=math.inf)
        return [(grid.params(state), _sign(study) * reward) for state, reward in predictions.items()]

    # -- how it chooses

    def random_picks(self, episode: int) -> int:
        """⌈εN⌉ with the ε of this episode (Algorithm 1, whose `min` is a misprint for `max`)."""
        epsilon = max(self.epsilon - self.epsilon_decay * episode, self.epsilon_min)
        return math.ceil(round(epsilon * self.candidates, 9))  # 0.55 * 100 is above 55 in floats

    def _choose(self, study: Study, trial: FrozenTrial, grid: Grid) -> State:
        """A state that no trial has (any, once none is left); notes on this trial why it was chosen."""
        trials = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        episode = self._episode(trial)
        place = sum(other.number < trial.number for other in self._members(trials, episode))
        predictions = self._predictions(study, trials, grid, before=episode)
        points = list(predictions) or grid.points(f"{self.seed}/{episode}")
        seen = {grid.state(other) for other in trials}
        # One shuffle serves the whole episode, so a random pick depends on what is seen, not on how it came about.
        Random(f"{self.seed}/{episode}").shuffle(points)
        unseen = [point for point in points if point not in seen]
        if not unseen:
            origin, chosen = "random", Random(f"{self.seed}/{trial.number}").choice(points)
        elif predictions and place < self.candidates - self.random_picks(episode):
            origin, chosen = "controller", max(unseen, key=predictions.__getitem__)
        else:
            origin, chosen = "random", unseen[0]
        prediction = _sign(study) * predictions[chosen] if predictions else None
        for name, value in {"origin": origin, "prediction": prediction}.items():
            study._storage.set_trial_user_attr(trial._trial_id, name, value)
        return chosen

    def _predictions(self, study: Study, trials: list[FrozenTrial], grid: Grid, before: float) -> dict[State, float]:
        """Every point with the reward to expect of it, learned from the episodes before one; empty if from none."""
        rewards: dict[int, list[tuple[State, float]]] = {}
        for trial in trials:
            episode, state = self._episode(trial), grid.state(trial)
            if trial.state == TrialState.COMPLETE and episode < before and state:
                assert trial.value is not None
                if math.isfinite(trial.value):
                    rewards.setdefault(episode, []).append((state, _sign(study) * trial.value))
        if not rewards:
            return {}
        episodes = [pairs for _, pairs in sorted(rewards.items())]
        fingerprint = hashlib.sha256(repr((self.training, grid.distributions, episodes)).encode()).hexdigest()
        if self._memo[0] != fingerprint:
            from kdnas.search.predictor import Settings, recall

            points = grid.points(fingerprint)
            learned = recall(fingerprint, self.cache, episodes, grid.sizes, Settings(**self.training))
            self._memo = fingerprint, dict(zip(points, learned.predict(points), strict=True))
        return self._memo[1]

    def _episode(self, trial: FrozenTrial) -> int:
        return trial.user_attrs.get("episode", trial.number // self.candidates)

    def _members(self, trials: list[FrozenTrial], episode: int) -> list[FrozenTrial]:
        """The trials that have a place in an episode."""
        return [t for t in trials if self._episode(t) == episode and not t.user_attrs.get("rejected")]


def _sign(study: Study) -> int:
    """What turns objective values into rewards, and back."""
    return -1 if study.direction == StudyDirection.MINIMIZE else 1


def _size(distribution: BaseDistribution) -> float:
    """How many values it has: infinitely many, as a float without steps."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution | FloatDistribution) and distribution.step is not None:
        return round((distribution.high - distribution.low) / distribution.step) + 1
    return math.inf


def _value(distribution: BaseDistribution, index: int) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[index]
    assert isinstance(distribution, IntDistribution | FloatDistribution) and distribution.step is not None
    return min(distribution.low + index * distribution.step, distribution.high)


def _index(distribution: BaseDistribution, value: Any) -> int:
    """The inverse of `_value`; a ValueError where it has none."""
    internal = distribution.to_internal_repr(value)
    if not distribution._contains(internal):
        raise ValueError(f"{value!r} is not in {distribution}")
    if isinstance(distribution, CategoricalDistribution):
        return int(internal)
    assert isinstance(distribution, IntDistribution | FloatDistribution) and distribution.step is not None
    return round((internal - distribution.low) / distribution.step)
