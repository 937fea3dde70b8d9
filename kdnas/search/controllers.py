"""The papers' Feedback Controller as an Optuna sampler (KD-NAS v1, §3.3 and Algorithm 1; v2, III-A and III-B).

Optuna's own samplers are the other controllers. Torch is imported when there is something to learn from, so that a
command line that only reads configs starts fast.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdnas.base.errors import is_number, require, require_whole
from kdnas.models.space import ENUMERABLE

if TYPE_CHECKING:
    from kdnas.search.predictor import Learned, State

POOL = 10_000
"""Random points that stand for a space with too many to list."""
LARGEST = 1_000
"""A dimension with more values than this is treated as continuous: they are too many to learn one by one."""


class Grid:
    """The points of a space's finite dimensions. A *state* is the index of a point's value in each of them."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.distributions = {name: d for name, d in space.items() if 1 < _size(d) <= LARGEST}
        self.sizes = [int(_size(d)) for d in self.distributions.values()]
        self.indices: dict[str, dict[Any, int]] = {name: {} for name in self.distributions}

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
            return tuple([self._index(name, params[name]) for name in self.distributions])
        except (KeyError, ValueError):
            return None

    def _index(self, name: str, value: Any) -> int:
        known = self.indices[name]
        if value not in known:
            known[value] = _index(self.distributions[name], value)
        return known[value]


class History:
    """What the trials of a study tell of a grid. Those at its head that have ended are read once: they change no more.

    Args:
        candidates: of an episode, for trials that do not say which theirs is.
    """

    def __init__(self, study: Study, grid: Grid, candidates: int) -> None:
        self.study, self.grid, self.candidates, self.sign = study, grid, candidates, _sign(study)
        self.head = 0
        self.seen: set[State | None] = set()
        """The states of the trials that have ended."""
        self.pairs: dict[int, dict[int, tuple[State, float]]] = defaultdict(dict)
        """Of each episode, by the trial's number, what there is to learn."""
        self.members: dict[int, set[int]] = defaultdict(set)
        """The numbers of the trials that have a place in each episode."""
        self.open: dict[int, State | None] = {}
        """The states of the trials that have not ended, by number."""
        self.plan: tuple[tuple[int, int], Plan] | None = None

    def read(self, trials: Sequence[FrozenTrial]) -> None:
        head, self.open = self.head, {}
        for trial in trials[self.head :]:
            episode, state = episode_of(trial, self.candidates), self.grid.state(trial)
            if trial.user_attrs.get("rejected"):
                self.members[episode].discard(trial.number)
            else:
                self.members[episode].add(trial.number)
            if not trial.state.is_finished():
                self.open[trial.number] = state
                continue
            head += not self.open
            self.seen.add(state)
            if trial.state == TrialState.COMPLETE and state and math.isfinite(trial.value):  # type: ignore[arg-type]
                assert trial.value is not None
                self.pairs[episode][trial.number] = state, self.sign * trial.value
        self.head = head

    def episodes(self, before: float) -> list[list[tuple[State, float]]]:
        """The pairs of each episode before one, in the order of the trials."""
        known = sorted(number for number in self.pairs if number < before)
        return [[pair for _, pair in sorted(self.pairs[number].items())] for number in known]


@dataclass(frozen=True)
class Plan:
    """The points to choose an episode from: in random order, and the best predicted first if anything was learned."""

    shuffled: list[State]
    ranked: list[State]
    predictions: Mapping[State, float]


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
        replay: whether these pairs are all so far (of many episodes, a sample), or only the episode's own, as in the
            papers.
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
        self._space: tuple[Study | None, int, dict[str, BaseDistribution] | None] = (None, 0, None)
        self._history: History | None = None
        self._latest: Learned | None = None

    # -- what Optuna calls

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._raise_error_if_multi_objective(study)
        return self._grid(study, study.get_trials(deepcopy=False)).distributions

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
        episode = episode_of(trial, self.candidates)
        for other in study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING)):
            if other.number != trial.number and has_place(other, episode, self.candidates):
                return
        finished = copy.copy(trial)
        finished.state, finished.values = state, values  # the setter takes None
        trials = study.get_trials(deepcopy=False)
        trials = [finished if other.number == trial.number else other for other in trials]
        if sum(has_place(other, episode, self.candidates) for other in trials) >= self.candidates:
            self._learned(self._read(study, trials, self._grid(study, trials)), before=episode + 1)

    def expected(self, study: Study) -> list[tuple[dict[str, Any], float]]:
        """Every point of the study's space, with the objective value to expect of it after all its trials."""
        trials = study.get_trials(deepcopy=False)
        history = self._read(study, trials, self._grid(study, trials))
        predictions = self._predictions(history, before=math.inf)
        return [(history.grid.params(state), _sign(study) * reward) for state, reward in predictions.items()]

    # -- how it chooses

    def random_picks(self, episode: int) -> int:
        """⌈εN⌉ with the ε of this episode (Algorithm 1, whose `min` is a misprint for `max`)."""
        epsilon = max(self.epsilon - self.epsilon_decay * episode, self.epsilon_min)
        return math.ceil(round(epsilon * self.candidates, 9))  # 0.55 * 100 is above 55 in floats

    def _choose(self, study: Study, trial: FrozenTrial, grid: Grid) -> State:
        """A state that no trial has (any, once none is left); notes on this trial why it was chosen."""
        history = self._read(study, study.get_trials(deepcopy=False), grid)
        episode = episode_of(trial, self.candidates)
        place = sum(number < trial.number for number in history.members[episode])
        plan = self._plan(history, episode)
        elsewhere = {state for number, state in history.open.items() if number != trial.number}
        best = bool(plan.ranked) and place < self.candidates - self.random_picks(episode)
        points = plan.ranked if best else plan.shuffled
        unseen = (point for point in points if point not in history.seen and point not in elsewhere)
        chosen = next(unseen, None)
        origin = "controller" if best and chosen is not None else "random"
        if chosen is None:
            chosen = Random(f"{self.seed}/{trial.number}").choice(plan.shuffled)
        prediction = _sign(study) * plan.predictions[chosen] if plan.predictions else None
        for name, value in {"origin": origin, "prediction": prediction}.items():
            study._storage.set_trial_user_attr(trial._trial_id, name, value)
        return chosen

    def _plan(self, history: History, episode: int) -> Plan:
        """One serves the whole episode, so a random pick depends on what is seen, not on how it came about."""
        key = episode, sum(len(pairs) for number, pairs in history.pairs.items() if number < episode)
        if history.plan is None or history.plan[0] != key:
            predictions = self._predictions(history, before=episode)
            points = list(predictions) or history.grid.points(f"{self.seed}/{episode}")
            Random(f"{self.seed}/{episode}").shuffle(points)
            ranked = sorted(points, key=predictions.__getitem__, reverse=True) if predictions else []
            history.plan = key, Plan(points, ranked, predictions)
        return history.plan[1]

    def _predictions(self, history: History, before: float) -> dict[State, float]:
        """Every point with the reward to expect of it, learned from the episodes before one; empty if from none."""
        learned = self._learned(history, before)
        if learned is None:
            return {}
        points = history.grid.points(learned.fingerprint)
        return dict(zip(points, learned.predict(points), strict=True))

    def _learned(self, history: History, before: float) -> Learned | None:
        """The predictor that the episodes before one make; None if they hold nothing to learn."""
        episodes = history.episodes(before)
        if not episodes:
            return None
        from kdnas.search.predictor import Settings, recall

        digest = hashlib.sha256(repr((self.training, history.grid.distributions)).encode())
        fingerprints = []
        for episode in episodes:
            digest.update(repr(episode).encode())
            fingerprints.append(digest.hexdigest())
        settings = Settings(**self.training)
        self._latest = recall(fingerprints, self._latest, self.cache, episodes, history.grid.sizes, settings)
        return self._latest

    # -- what it knows of a study

    def _grid(self, study: Study, trials: Sequence[FrozenTrial]) -> Grid:
        """Of the dimensions that all trials have: Optuna's `intersection_search_space`, but not from scratch."""
        known, head, space = self._space
        if known is not study:
            head, space = 0, None
        for trial in trials[head:]:
            if trial.state == TrialState.COMPLETE:
                theirs = trial.distributions
                space = {n: d for n, d in (theirs if space is None else space).items() if _same(d, theirs.get(n))}
        head += sum(1 for _ in itertools.takewhile(lambda trial: trial.state.is_finished(), trials[head:]))
        self._space = study, head, space
        return Grid(dict(sorted((space or {}).items())))

    def _read(self, study: Study, trials: Sequence[FrozenTrial], grid: Grid) -> History:
        history = self._history
        if history is None or history.study is not study or history.grid.distributions != grid.distributions:
            history = History(study, grid, self.candidates)
        history.read(trials)
        self._history = history
        return history


def episode_of(trial: FrozenTrial, candidates: int) -> int:
    return trial.user_attrs.get("episode", trial.number // candidates)


def has_place(trial: FrozenTrial, episode: int, candidates: int) -> bool:
    return episode_of(trial, candidates) == episode and not trial.user_attrs.get("rejected")


def _same(one: BaseDistribution, other: BaseDistribution | None) -> bool:
    """Whether they are equal. The attributes are compared first: Optuna goes through long lists one by one."""
    return one is other or (type(one) is type(other) and vars(one) == vars(other)) or one == other


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
