"""Rewards against the papers' equations, worked out with a calculator."""

import itertools
import math
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from kdnas.base.config import instantiate
from kdnas.base.errors import ConfigError
from kdnas.costs.cost import Cost, Latency

CONF = Path(__file__).resolve().parent.parent / "conf"


def reward_of(name, *overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        return instantiate(compose(f"reward/{name}", [f"reward.{override}" for override in overrides]).reward)


def cost(cpu, parameters=1, **others):
    return Cost(parameters, 1, {name: Latency(median, 0.0) for name, median in {"cpu": cpu, **others}.items()})


TEACHER = cost(40.0, 100_000_000, cuda=8.0)


@pytest.mark.parametrize(
    ("name", "metrics", "student", "expected"),
    [
        # Eq. 4: (1 - 0.05) (10 / (0.6 * 40))^-0.06 = 0.95 * 0.4166667^-0.06
        ("kdnas_v2", {"loss": 0.05}, cost(10.0), 1.0012356),
        # at the target, 24 ms, the latency plays no part; above it, it costs
        ("kdnas_v2", {"loss": 0.05}, cost(24.0), 0.95),
        ("kdnas_v2", {"loss": 0.25}, cost(40.0), 0.7273615),
        # Eq. 5: 0.8 (10 / (0.6 * 40))^-0.06
        ("kdnas_v1", {"accuracy": 0.8, "loss": 9.0}, cost(10.0), 0.8431458),
        # Eq. 7: 0.8 (20 M / (0.5 * 100 M))^-0.06 = 0.8 * 0.4^-0.06
        ("kdnas_v1_parameters", {"accuracy": 0.8}, cost(1.0, 20_000_000), 0.8452134),
        # the hard form: nothing is gained below the target, and above it Eq. 4 holds
        ("latency_target", {"loss": 0.05}, cost(10.0), 0.95),
        ("latency_target", {"loss": 0.05}, cost(24.0), 0.95),
        ("latency_target", {"loss": 0.25}, cost(40.0), 0.7273615),
    ],
)
def test_the_papers_equations(name, metrics, student, expected):
    assert reward_of(name)(metrics, student, TEACHER) == pytest.approx(expected, abs=2e-7)


def test_alpha_beta_and_the_device_can_be_set():
    student = cost(100.0, cuda=2.0)
    reward = reward_of("kdnas_v2", "alpha=-0.5", "beta=1.0", "cost.accelerator=cuda")
    assert reward({"loss": 0.2}, student, TEACHER) == pytest.approx(0.8 * 2)  # (2 / 8)^-0.5 = 2
    assert reward_of("kdnas_v2", "alpha=0")({"loss": 0.2}, student, TEACHER) == 0.8


@pytest.mark.parametrize("name", ["kdnas_v2", "latency_target"])
def test_a_lower_loss_and_a_lower_latency_are_never_worse(name):
    reward = reward_of(name)
    losses = [0.0, 0.05, 0.5, 0.99, 1.0, 1.01, 1.5, 3.0, 100.0]
    latencies = [0.1, 1.0, 10.0, 24.0, 25.0, 40.0, 400.0]
    for latency in latencies:
        rewards = [reward({"loss": loss}, cost(latency), TEACHER) for loss in losses]
        assert all(better > worse for better, worse in itertools.pairwise(rewards))
    for loss in losses:
        rewards = [reward({"loss": loss}, cost(latency), TEACHER) for latency in latencies]
        if loss == 1.0:
            assert rewards == [0.0] * len(latencies)
        for i, (better, worse) in enumerate(itertools.pairwise(rewards)):
            free = loss == 1.0 or (name == "latency_target" and latencies[i + 1] <= 24.0)
            assert better == worse if free else better > worse


def test_a_negative_quality_is_divided_by_the_latency_term():
    # (1 - 3) / (10 / 24)^-0.06 = -2 / 1.0539322
    assert reward_of("kdnas_v2")({"loss": 3.0}, cost(10.0), TEACHER) == pytest.approx(-1.8976553, abs=2e-7)


def test_the_reward_has_no_step_where_the_quality_changes_sign():
    reward = reward_of("kdnas_v2")
    for latency in (0.1, 24.0, 1000.0):
        around = [reward({"loss": 1 + step}, cost(latency), TEACHER) for step in (-1e-9, 0.0, 1e-9)]
        assert around[0] > around[1] == 0 > around[2]
        assert around == pytest.approx([0, 0, 0], abs=1e-8)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_no_reward(loss):
    assert math.isnan(reward_of("kdnas_v2")({"loss": loss}, cost(10.0), TEACHER))


@pytest.mark.parametrize(
    ("override", "message"),
    [("alpha=0.06", r"reward.alpha=0.06: .*0"), ("beta=0", r"reward.beta=0: "), ("beta=-1", r"reward.beta=-1: ")],
)
def test_what_would_reward_slower_students_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        reward_of("kdnas_v2", override)


def test_a_metric_that_is_not_measured_is_refused_with_those_that_are():
    reward = reward_of("kdnas_v1", "quality.name=f1")
    with pytest.raises(ConfigError, match=r"^quality.name=f1: .*accuracy, loss"):
        reward({"accuracy": 0.5, "loss": 0.1}, cost(10.0), TEACHER)


def test_a_device_that_is_not_measured_is_refused_with_those_that_are():
    reward = reward_of("kdnas_v2", "cost.accelerator=mps")
    with pytest.raises(ConfigError, match=r"^cost.accelerator=mps: .*cpu, cuda"):
        reward({"loss": 0.1}, cost(10.0, cuda=3.0), TEACHER)
