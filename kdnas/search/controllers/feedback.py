"""The papers' Feedback Controller as an Optuna sampler (KD-NAS v1, §3.3 and Algorithm 1; v2, III-A and III-B).

Torch is imported when there is something to learn from, so that a command line that only reads configs starts fast.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from kdnas.base.errors import is_number, require, require_whole
from kdnas.search.controllers.grid import CommonSpace, Grid, History, State, episode_of, has_place, sign

if TYPE_CHECKING:
    from kdnas.search.controllers.predictor import Learned


@dataclass(frozen=True)
class Plan:
    """The points to choose an episode from: in random order, and the best predicted first if anything was learned."""

    shuffled: list[State]
    ranked: list[State]
    predictions: Mapping[State, float]


class FeedbackSampler(BaseSampler):
    """Proposes the states whose reward an LSTM predicts to be highest, then random ones.

    What it proposes is a function of the study's finished trials and the seeds: the predictor is trained anew when
    these trials change. A trial belongs to the episode in its user attribute `episode`, else to its number over
    `candidates`, and takes no place there if it has the attribute `rejected`. Proposed trials get the attributes
    `origin` (`controller` or `random`) and `prediction` (None while nothing has been learned).

    Args:
        candidates: N, the number of states that an episode proposes.
        epsilon: ε, the share of random states in the first episode.
        epsilon_decay: what ε falls by with each episode.
        epsilon_min: the least ε.
        hidden_size: the number of cells of the LSTM.
        embedding: the width of a dimension's embedding.
        learning_rate: RMSProp's learning rate in the first episode.
        decay: the factor on the learning rate after each episode.
        epochs: the number of passes over the training pairs after each episode.
        replay: whether to train on all episodes so far (of many, on a sample), or only on the latest, as in the papers.
        standardise: whether to bring the rewards so far to mean 0 and deviation 1 before training.
        seed: the seed of the random states.
        model_seed: the seed of the initial weights and best states; `seed` if None. It has to stay the same throughout
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
            require_whole(name, count, 1)
        shares = dict(epsilon=epsilon, epsilon_decay=epsilon_decay, epsilon_min=epsilon_min, decay=decay)
        for name, share in shares.items():
            require(is_number(share) and 0 <= share <= 1, name, share, "from 0 to 1")
        positive = is_number(learning_rate) and learning_rate > 0
        require(positive, "learning_rate", learning_rate, "a number above 0")
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
        self._common = CommonSpace()
        self._history: History | None = None
        self._plan: tuple[History, int, int, Plan] | None = None
        self._latest: Learned | None = None

    # -- what Optuna calls

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._raise_error_if_multi_objective(study)
        return self._common.grid(study, study.get_trials(deepcopy=False)).distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._raise_error_if_multi_objective(study)
        grid = Grid(search_space)
        others = [name for name in search_space if name not in grid.distributions]
        values = {name: self.sample_independent(study, trial, name, search_space[name]) for name in others}
        return values | grid.params(self._choose(study, trial, grid))

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
            self._learned(self._read(study, trials, self._common.grid(study, trials)), before=episode + 1)

    def expected(self, study: Study) -> list[tuple[dict[str, Any], float]]:
        """Returns every point of the study's space, with the objective value to expect of it after all its trials."""
        trials = study.get_trials(deepcopy=False)
        history = self._read(study, trials, self._common.grid(study, trials))
        predictions = self._predictions(history, before=math.inf)
        return [(history.grid.params(state), sign(study) * reward) for state, reward in predictions.items()]

    # -- how it chooses

    def random_picks(self, episode: int) -> int:
        """Returns ⌈εN⌉ with the ε of an episode (Algorithm 1, whose `min` is a misprint for `max`)."""
        epsilon = max(self.epsilon - self.epsilon_decay * episode, self.epsilon_min)
        return math.ceil(round(epsilon * self.candidates, 9))  # 0.55 * 100 is above 55 in floats

    def _choose(self, study: Study, trial: FrozenTrial, grid: Grid) -> State:
        """Returns a state that no trial has (any, once none is left), and stores on the trial why it was chosen."""
        history = self._read(study, study.get_trials(deepcopy=False), grid)
        episode = episode_of(trial, self.candidates)
        place = sum(number < trial.number for number in history.members[episode])
        plan = self._plan_of(history, episode)
        elsewhere = {state for number, state in history.open.items() if number != trial.number}
        best = bool(plan.ranked) and place < self.candidates - self.random_picks(episode)
        points = plan.ranked if best else plan.shuffled
        unseen = (point for point in points if point not in history.seen and point not in elsewhere)
        chosen = next(unseen, None)
        origin = "controller" if best and chosen is not None else "random"
        if chosen is None:
            chosen = Random(f"{self.seed}/{trial.number}").choice(plan.shuffled)
        prediction = sign(study) * plan.predictions[chosen] if plan.predictions else None
        for name, value in {"origin": origin, "prediction": prediction}.items():
            study._storage.set_trial_user_attr(trial._trial_id, name, value)
        return chosen

    def _plan_of(self, history: History, episode: int) -> Plan:
        """Returns an episode's plan. It is made once, so that a random pick does not depend on the picks before it."""
        known = sum(len(pairs) for number, pairs in history.pairs.items() if number < episode)
        if self._plan is None or self._plan[0] is not history or self._plan[1:3] != (episode, known):
            predictions = self._predictions(history, before=episode)
            points = list(predictions) or history.grid.points(f"{self.seed}/{episode}")
            Random(f"{self.seed}/{episode}").shuffle(points)
            ranked = sorted(points, key=predictions.__getitem__, reverse=True) if predictions else []
            self._plan = history, episode, known, Plan(points, ranked, predictions)
        return self._plan[3]

    def _predictions(self, history: History, before: float) -> dict[State, float]:
        """Returns the expected reward of every point, learned from the episodes before one; empty if from none."""
        learned = self._learned(history, before)
        if learned is None:
            return {}
        points = history.grid.points(learned.fingerprint)
        return dict(zip(points, learned.predict(points), strict=True))

    def _learned(self, history: History, before: float) -> Learned | None:
        """Returns the predictor trained on the episodes before one; None if they hold nothing to learn."""
        episodes = history.episodes(before)
        if not episodes:
            return None
        from kdnas.search.controllers.predictor import Settings, recall

        digest = hashlib.sha256(repr((self.training, history.grid.distributions)).encode())
        fingerprints = []
        for episode in episodes:
            digest.update(repr(episode).encode())
            fingerprints.append(digest.hexdigest())
        settings = Settings(**self.training)
        self._latest = recall(fingerprints, self._latest, self.cache, episodes, history.grid.sizes, settings)
        return self._latest

    def _read(self, study: Study, trials: Sequence[FrozenTrial], grid: Grid) -> History:
        """Returns the study's history, read on from the last call where the grid is the same."""
        history = self._history
        if history is None or history.study is not study or history.grid.distributions != grid.distributions:
            history = History(study, grid, self.candidates)
        history.read(trials)
        self._history = history
        return history
