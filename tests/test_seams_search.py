"""A controller, a schedule and a ranking from the outside, each picked by a config and run in the real loop."""

from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest
from omegaconf import OmegaConf
from optuna.samplers import BaseSampler
from optuna.search_space import intersection_search_space
from optuna.storages import InMemoryStorage

from kdnas.base.config import instantiate
from kdnas.costs.cost import Cost, Latency
from kdnas.models.space import SearchSpace
from kdnas.search.loop import Loop
from kdnas.search.proposing import Proposer
from kdnas.search.ranking import ByReward
from kdnas.search.schedule import Schedule
from kdnas.search.search import Search, SearchSettings
from kdnas.search.study import Study

SPACE = SearchSpace([2, 4, 6, 8, 10, 12], [2, 4], [16, 32, 48, 64], [32, 64, 96, 128], ["gelu", "relu"])
RANDOM = "optuna.samplers.RandomSampler"


def loss(architecture, epochs):
    """Falls with depth and with training; the order of two candidates may change between the epochs."""
    return 1 / architecture.num_hidden_layers + (architecture.hidden_size % 48) / 100 / epochs


def epochs(job):
    return job.fidelity.get("trainer", {}).get("max_epochs", 1)


def made(name, **arguments):
    return instantiate(OmegaConf.create({"_target_": name if "." in name else f"{__name__}.{name}", **arguments}))


def search(controller=RANDOM, schedule="kdnas.search.schedule.Episodes", ranking=None, storage=None, **settings):
    """Runs a search whose jobs are a formula; returns it with the jobs that it ran."""
    storage, ran = storage or InMemoryStorage(), []
    whole = Search(
        SearchSettings(**{"episodes": 1, "candidates": 9, "finalists": 2, **settings}),
        {kind: Study(storage, kind) for kind in ("mini", "full")},
        Proposer(SPACE, made(controller, _partial_=True), seed=0),
        ranking or ByReward(),
    )

    def evaluate(jobs):
        for job in jobs:
            ran.append(job)
            for trial, one in zip(job.trials, job.architectures, strict=True):
                found = loss(one, epochs(job))
                latency = {"cpu": Latency(one.num_hidden_layers, 0.1)}
                whole.studies[job.kind].tell(trial, 1 - found, {"loss": found}, Cost(1, 1, latency))
        return [""] * len(jobs)

    Loop(whole, made(schedule), evaluate).run()
    return whole, ran


class HillClimber(BaseSampler):
    """Changes one value of the best architecture so far."""

    def __init__(self, seed):
        self.rng = Random(seed)

    def infer_relative_search_space(self, study, trial):
        return intersection_search_space(study.get_trials(deepcopy=False))

    def sample_relative(self, study, trial, search_space):
        if not search_space:
            return {}
        name = self.rng.choice(list(search_space))
        return study.best_trial.params | {name: self.rng.choice(search_space[name].choices)}

    def sample_independent(self, study, trial, name, distribution):
        return self.rng.choice(distribution.choices)


def test_a_controller():
    whole, _ = search("HillClimber", episodes=4, candidates=3)
    seen = whole.mini.observations
    for one in seen[3:]:
        best = max((other for other in seen if other.episode < one.episode), key=lambda other: other.reward)
        differing = one.architecture.to_dict().items() - best.architecture.to_dict().items()
        assert len(differing) == 1 and one.origin == "controller"
    assert len({one.architecture for one in seen}) == 12


class Halving(Schedule):
    """Successive halving (Jamieson and Talwalkar, 2016): the best third is trained three times as long, and so on."""

    def batches(self, search):
        search.propose(episode=0)
        yield search.mini.jobs()
        left, rung = search.best(), 0
        while len(left) >= 3:
            left, rung = left[: len(left) // 3], rung + 1
            for seen in left:
                search.promote(seen, rung, {"trainer": {"max_epochs": 3**rung}})
            yield search.full.jobs()
            rewards = {one.candidate: one.reward for one in search.full.observations if one.episode == rung}
            left = sorted(left, key=lambda seen: -rewards[seen.trial])


def test_a_schedule():
    storage = InMemoryStorage()
    whole, ran = search(schedule="Halving", storage=storage)
    assert Counter(epochs(job) for job in ran) == {1: 9, 3: 3, 9: 1}
    first = sorted(whole.mini.architectures(), key=lambda one: loss(one, 1))[:3]
    winner = min(first, key=lambda one: loss(one, 3))
    assert ran[-1].architectures == (winner,)
    assert whole.mini.architecture(whole.mini.order[0]) == winner
    assert search(schedule="Halving", storage=storage)[1] == []  # a finished search runs nothing


def test_a_candidate_is_promoted_again_with_other_settings_only():
    whole, _ = search()
    (first, *_), count = whole.best(), len(whole.full.trials())
    for fidelity, added in ((None, 0), ({"seed": 1}, 1), ({"seed": 1}, 1), ({"seed": 2}, 2), ({"seed": (2, 3)}, 3)):
        whole.promote(first, fidelity=fidelity)
        assert len(whole.full.trials()) == count + added
    assert [job.fidelity for job in whole.full.jobs()] == [{"seed": 1}, {"seed": 2}, {"seed": (2, 3)}]


@dataclass(frozen=True)
class AtMost:
    """Orders by the reward, but candidates over a latency come last."""

    milliseconds: float

    def order(self, candidates):
        return sorted(ByReward().order(candidates), key=lambda one: one.cost.latency["cpu"].median > self.milliseconds)


@pytest.mark.parametrize("limit", [4, 8, 99])
def test_a_ranking(limit):
    whole, ran = search(ranking=made("AtMost", milliseconds=limit), candidates=12)
    fast = [one for one in whole.mini.observations if one.architecture.num_hidden_layers <= limit]
    best = sorted(fast, key=lambda one: (-one.reward, one.trial))[:2]
    assert {job.architectures for job in ran if job.kind == "full"} == {(one.architecture,) for one in best}
    assert whole.mini.order[0] in {one.trial for one in best}
    assert len(whole.mini.order) == 12
