"""Who chose a candidate: the random start of Optuna's samplers is not the controller's work."""

import functools

import optuna
import pytest
from optuna.samplers import GPSampler, NSGAIISampler, RandomSampler, TPESampler

from kdnas.costs.cost import Cost
from kdnas.models.space import SearchSpace
from kdnas.search.proposing import Proposer
from kdnas.search.study import Study

SPACE = SearchSpace(
    num_hidden_layers=[1, 2, 3, 4],
    num_attention_heads=[1, 2],
    hidden_size=[16, 32, 64],
    intermediate_size=[32, 64, 128],
    hidden_act=["gelu", "relu"],
)


@pytest.mark.parametrize(
    ("controller", "start"),
    [
        (functools.partial(RandomSampler), 12),
        (functools.partial(TPESampler, n_startup_trials=5), 6),  # an episode of three begins with what is told
        (functools.partial(TPESampler, n_startup_trials=5, constant_liar=True), 6),
        (functools.partial(GPSampler, n_startup_trials=6), 6),
        (functools.partial(NSGAIISampler, population_size=6), 6),
    ],
)
def test_the_random_start_is_called_random(controller, start):
    if controller.func is GPSampler:
        pytest.importorskip("scipy")
    study = Study(optuna.storages.InMemoryStorage())
    for episode in range(4):
        Proposer(SPACE, controller, 1).propose(study, 3, episode)
        for trial in study.trials(optuna.trial.TrialState.RUNNING):
            study.tell(trial.number, 1 / (1 + trial.params["hidden_size"]), {"loss": 0.1}, Cost(1, 1, {}))
    origins = [seen.origin for seen in study.observations]
    assert origins[:start] == ["random"] * start
    assert "controller" in origins[start:] or start == 12
    if controller.func is not NSGAIISampler:  # which may mutate all values of a child
        assert origins[start:] == ["controller"] * (12 - start)
