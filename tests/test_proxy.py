"""Kendall's τ and its interval, the architectures that are compared, and the schedule that trains them."""

import math
from collections import Counter
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from scipy.stats import bootstrap, kendalltau

from kdnas.base.errors import ConfigError
from kdnas.costs.cost import Cost, Latency
from kdnas.models.space import SearchSpace
from kdnas.reports.proxy import answer, compare
from kdnas.reports.proxy.text import as_markdown
from kdnas.search.fidelity import Criterion, Proxy
from kdnas.search.loop import Loop
from kdnas.search.proposing import Proposer
from kdnas.search.proxy_grid import ProxyGrid, trained
from kdnas.search.ranking import ByReward
from kdnas.search.reward import LatencyOn, OneMinusLoss, Reward
from kdnas.search.search import Search, SearchSettings
from kdnas.search.spread import members, spread
from kdnas.search.study import Study

SPACE = SearchSpace([1, 2, 3, 4], [2], [8, 16, 24, 32], [16, 32], ["gelu", "relu"])


# -- τ


@pytest.mark.parametrize("values", [4, 1000])  # few values: many ties
@pytest.mark.parametrize("count", [4, 12, 40])
def test_tau_is_scipys(count, values):
    rng = np.random.default_rng(count + values)
    first, second = (rng.integers(values, size=count) / 3 for _ in range(2))
    found = Criterion(resamples=200, confidence=0.9, seed=3).tau(first, second)
    assert found.value == pytest.approx(kendalltau(first, second).statistic, abs=1e-12)
    drawn = np.random.default_rng(3).multinomial(count, np.full(count, 1 / count), size=200)
    with np.errstate(invalid="ignore"):
        taus = [kendalltau(np.repeat(first, times), np.repeat(second, times)).statistic for times in drawn]
    assert [found.low, found.high] == pytest.approx(np.nanquantile(taus, [0.05, 0.95]), abs=1e-12)


def test_the_interval_is_scipys_bootstrap():
    rng = np.random.default_rng(0)
    first = rng.normal(size=20)
    second = first + rng.normal(size=20)
    found = Criterion().tau(first, second)
    other = bootstrap(
        (first, second),
        lambda one, two: kendalltau(one, two).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=1000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert [found.low, found.high] == pytest.approx([other.low, other.high], abs=0.03)


def test_closed_forms_of_tau():
    def tau(second):
        return Criterion().tau(range(5), second)

    same, reversed_ = tau([1, 2, 3, 4, 5]), tau([5, 4, 3, 2, 1])
    assert (same.value, same.low, same.high) == (1, 1, 1)
    assert (reversed_.value, reversed_.low, reversed_.high) == (-1, -1, -1)
    assert tau([2, 1, 3, 4, 5]).value == pytest.approx(8 / 10)  # 9 of 10 pairs agree: 9/10 - 1/10
    assert tau([1, 1, 3, 4, 5]).value == pytest.approx(9 / math.sqrt(10 * 9))  # a pair is tied in one ranking
    assert all(map(math.isnan, vars(tau([1, 1, 1, 1, 1])).values()))


# -- the architectures


def test_architectures_are_spread_over_the_sizes():
    pool = members(SPACE, seed=0)
    assert len(pool) == len(set(pool)) == 64
    for seed in range(20):
        found = spread(pool, 16, seed)
        assert len(set(found)) == 16 and spread(pool, 8, seed) == found[:8]
        smaller = [sum(other.size < one.size for other in pool) // 16 for one in found]
        assert all(abs(smaller.count(quarter) - 4) <= 2 for quarter in range(4))
    assert sorted(map(str, spread(pool, 64, 0))) == sorted(map(str, pool))


def test_all_architectures_are_equally_likely():
    pool = members(SPACE, seed=0)
    seen = Counter(one for seed in range(800) for one in spread(pool, 8, seed))
    assert set(seen) == set(pool)
    assert all(abs(count - 100) < 5 * 10 for count in seen.values())  # of a binomial distribution: mean 100, σ 9.4


def test_a_space_too_large_to_list():
    large = SearchSpace(range(1, 100), [1], range(8, 108), range(8, 108), ["gelu"])
    pool = members(large, seed=1)
    assert len(set(pool)) == 1000 and pool == members(large, seed=1) and all(one in large for one in pool)


# -- the schedule

PROXIES = {Proxy(2, 0.5): {"epochs": 2}, Proxy(1, 0.5): {"epochs": 1}, Proxy(1, 1.0): {"epochs": 4}}
REWARD = Reward(OneMinusLoss(), LatencyOn("cpu"), alpha=-0.5)
TEACHER = Cost(9, 9, {"cpu": Latency(9.0, 0.1)})


class Trainings:
    """Runs jobs by a formula: the more epochs, the closer a loss comes to that of the full distillation.

    Args:
        broken: architectures that fail, in jobs of the kinds `fails`.
        breaks: the number of jobs after which the launcher gives up.
    """

    def __init__(self, studies, broken=(), fails=("mini", "full"), breaks=math.inf):
        self.studies, self.broken, self.fails, self.breaks, self.ran = studies, broken, fails, breaks, []

    def __call__(self, jobs):
        for job in (job for job in jobs if job.trials):  # not the one that would measure latencies again
            if len(self.ran) >= self.breaks:
                raise ConfigError("no launcher")
            self.ran.append(job)
            for trial, one in zip(job.trials, job.architectures, strict=True):
                if one in self.broken and job.kind in self.fails:
                    self.studies[job.kind].fail(trial, "diverged")
                    continue
                found = loss(one, job.fidelity.get("epochs"))
                seconds = job.fidelity.get("epochs", 8)
                # The host is busy but for the full distillations: each job measures another latency.
                latency = Latency(milliseconds(one) * (1 + seconds % 8), 0.1, busy=job.kind == "mini")
                costs = Cost(1, 1, {"cpu": latency})
                self.studies[job.kind].tell(trial, 2 - found, {"loss": found}, costs, seconds=seconds)
        return [""] * len(jobs)


def loss(one, epochs=None):
    noise = 0 if epochs is None or epochs > 1 else 0.3 * math.sin(one.intermediate_size * one.num_hidden_layers)
    return 1 / one.hidden_size + 1 / one.num_hidden_layers / 100 + one.intermediate_size / 10_000 + noise


def milliseconds(one):
    return one.num_hidden_layers + one.hidden_size / 100


def evaluate(architectures, proxies, storage=None, gang=4, **trainings):
    storage = storage or InMemoryStorage()
    mini, full = (Study(storage, kind) for kind in ("mini", "full"))
    settings = SearchSettings(episodes=1, candidates=1, finalists=0, gang=gang)
    search = Search(settings, {"mini": mini, "full": full}, Proposer(SPACE, partial(RandomSampler), 0), ByReward())
    grid = ProxyGrid(architectures, {proxy: PROXIES[proxy] for proxy in proxies})
    mini.teacher = full.teacher = TEACHER
    ran = Trainings({"mini": mini, "full": full}, **trainings)
    Loop(search, grid, ran).run()
    return mini, full, ran.ran, grid


def test_every_architecture_is_trained_by_every_proxy_and_in_full():
    pool = spread(members(SPACE, 0), 10, 0)
    mini, full, ran, grid = evaluate(pool, PROXIES)
    assert grid.expected(None) == {"mini": 30, "full": 10}
    assert [(job.kind, len(job.trials), job.fidelity.get("epochs")) for job in ran] == [
        *(("mini", members, epochs) for epochs in (1, 4, 2) for members in (4, 4, 2)),
        *(("full", members, None) for members in (4, 4, 2)),
    ]
    for proxy, fidelity in PROXIES.items():
        seen = trained(mini, proxy)
        assert {one: seen[one].metrics["loss"] for one in pool} == {one: loss(one, fidelity["epochs"]) for one in pool}
    assert {one: seen.metrics["loss"] for one, seen in trained(full).items()} == {one: loss(one) for one in pool}


def test_a_larger_grid_adds_to_what_is_there():
    storage, pool = InMemoryStorage(), spread(members(SPACE, 0), 6, 0)
    small, *_, large = sorted(PROXIES, key=lambda one: one.passes)
    evaluate(pool[:4], [small], storage)
    assert evaluate(pool[:4], [small], storage)[2] == []
    *_, ran, _ = evaluate(pool, [small, large], storage, gang=3)
    trials = Counter((job.kind, job.fidelity.get("epochs"), one) for job in ran for one in job.architectures)
    assert trials == {
        **{("mini", 1, one): 1 for one in pool[4:]},
        **{("mini", 4, one): 1 for one in pool},
        **{("full", None, one): 1 for one in pool[4:]},
    }
    assert evaluate(pool, [small, large], storage)[2] == []


def test_an_interrupted_evaluation_goes_on():
    storage, pool = InMemoryStorage(), spread(members(SPACE, 0), 4, 0)
    for _ in range(7):  # two jobs at a time, of 12 + 4
        with pytest.raises(ConfigError, match="no launcher"):
            evaluate(pool, PROXIES, storage, gang=1, breaks=2)
    mini, full, ran, _ = evaluate(pool, PROXIES, storage, gang=1, breaks=2)
    assert len(ran) == 2 and len(mini.observations) == 12 and len(full.observations) == 4


# -- the comparison


def compared(architectures, **trainings):
    mini, full, _, grid = evaluate(architectures, PROXIES, **trainings)
    return compare("test", (mini, full), architectures, list(grid.fidelities), REWARD, Criterion())


def test_the_smallest_proxy_that_passes_is_recommended():
    pool = spread(members(SPACE, 0), 10, 0)
    found = compared(pool)
    assert [one.proxy for one in found.scores] == [Proxy(1, 0.5), Proxy(1, 1.0), Proxy(2, 0.5)]
    worth = {  # the latency of a quiet host counts for both trainings
        "quality": lambda one, lost: -lost,
        "reward": lambda one, lost: (1 - lost) * (milliseconds(one) / (0.6 * 9)) ** -0.5,
    }
    for score in found.scores:
        epochs = PROXIES[score.proxy]["epochs"]
        for by, of in worth.items():
            full = [of(one, loss(one)) for one in pool]
            short = [of(one, loss(one, epochs)) for one in pool]
            assert score.taus[by].value == pytest.approx(kendalltau(short, full).statistic, abs=1e-12)
            assert score.best[by] == 1 + sum(other > full[int(np.argmax(short))] for other in full)
        assert score.share == epochs / 8
    assert found.scores[0].taus["quality"].low < 0.7 <= found.scores[1].taus["quality"].low
    assert found.passing == found.chosen == found.scores[1]
    assert answer(found).startswith("Recommended: 1 epoch on 100 % of the rows (τ of the loss 1.00, 95 % interval 1.00")


def test_where_no_proxy_passes_the_best_is_said():
    pool = spread(members(SPACE, 0), 8, 0)
    mini, full, *_ = evaluate(pool, [Proxy(1, 0.5)])
    found = compare("test", (mini, full), pool, [Proxy(1, 0.5)], REWARD, Criterion(threshold=0.9))
    assert found.passing is None and found.chosen.proxy == Proxy(1, 0.5)
    assert answer(found).startswith("No proxy passes: the lower bound of τ is nowhere 0.9 or more. The best is 1 epoch")


def test_failed_architectures_are_left_out_and_named():
    pool = spread(members(SPACE, 0), 7, 0)
    found = compared(pool, broken=pool[2:4])
    assert [one.architecture for one in found.full.seen] == pool[:2] + pool[4:]
    for one in pool[2:4]:
        assert f"Left out: {one} failed (1 epoch on 50 % of the rows): diverged" in as_markdown(found)
    *_, ran, _ = evaluate(pool, PROXIES, broken=pool[2:4])
    trainings = Counter((job.kind, one) for job in ran for one in job.architectures)
    assert [trainings["mini", one] for one in pool] == [3, 3, 1, 1, 3, 3, 3]  # by the smallest proxy alone
    found = compared(pool, broken=pool[2:3], fails=["full"])
    assert found.left_out == [f"{pool[2]} failed (in full): diverged"]


def test_too_few_architectures_are_left():
    pool = spread(members(SPACE, 0), 5, 0)
    storage = InMemoryStorage()
    few = r"^proxy\.architectures: 3 of 5 finished every training; must be at least 4; "
    with pytest.raises(ConfigError, match=few + "2 x diverged$"):
        evaluate(pool, PROXIES, storage, broken=pool[2:4])
    assert not Study(storage, "full").trials()  # nothing is distilled in full
    with pytest.raises(ConfigError, match=few + r".* failed \(in full\): diverged"):
        compared(pool, broken=pool[2:4], fails=["full"])


def test_proxies_of_equal_size():
    assert Proxy(3, 0.1).passes == Proxy(1, 0.3).passes
    sizes = [one.passes for one in map(Proxy, (1, 2, 3), (1.0, 0.25, 0.1))]
    assert sizes == [1.0, 0.5, 0.3]
    assert len(list(combinations({Proxy(1, 1), Proxy(1, 1.0)}, 2))) == 0  # the same proxy
