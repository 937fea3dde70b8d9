"""The loop with jobs that die: what is run again, what is given up, and what the study says of it."""

from dataclasses import replace
from functools import partial

import pytest
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from kdnas.base.errors import ConfigError
from kdnas.costs.cost import Cost, Latency
from kdnas.models.architecture import Architecture
from kdnas.models.space import SearchSpace
from kdnas.search.gangs import balanced
from kdnas.search.loop import Loop
from kdnas.search.proposing import Proposer
from kdnas.search.ranking import ByReward
from kdnas.search.schedule import Episodes
from kdnas.search.search import Search, SearchSettings
from kdnas.search.study import Study
from kdnas.search.trial_log import CandidateLog, FinalistLog, TrialLog

COST = Cost(10, 20, {"cpu": Latency(1.0, 0.1)})


class Cluster:
    """Runs jobs. `deaths` is how often a job with this trial dies before it reports; the others report at once."""

    def __init__(self, studies, deaths):
        self.studies, self.deaths = studies, dict(deaths)
        self.ran: list[tuple[int, ...]] = []

    def __call__(self, jobs):
        return [self.run(self.studies[job.kind], job.trials) for job in jobs]

    def run(self, study, numbers):
        self.ran.append(numbers)
        for number in numbers:
            if self.deaths.get(number, 0) > 0:
                self.deaths[number] -= 1
                return f"job {numbers} was killed"
        for number in numbers:
            study.tell(number, 1.0 / (1 + number), {"loss": 0.5}, COST)
        return ""


def search(deaths, **settings):
    storage = InMemoryStorage()
    studies = {stage: Study(storage, stage) for stage in ("mini", "full")}
    space = SearchSpace(
        num_hidden_layers=[1, 2, 3],
        num_attention_heads=[2],
        hidden_size=[8, 16],
        intermediate_size=[16],
        hidden_act=["gelu"],
    )
    cluster = Cluster(studies, deaths)
    settings = SearchSettings(**{"episodes": 1, "candidates": 4, "finalists": 0, "max_failed": 1.0, **settings})
    whole = Search(settings, studies, Proposer(space, partial(RandomSampler), 0), ByReward())
    return Loop(whole, Episodes(), cluster), cluster, studies["mini"]


def states(study):
    return [trial.state == TrialState.COMPLETE for trial in study.trials()]


def test_a_job_that_died_is_run_again_alone_and_the_others_are_not():
    whole, cluster, study = search({2: 1})
    whole.run()
    assert cluster.ran == [(0,), (1,), (2,), (3,), (2,)]
    assert states(study) == [True] * 4


def test_a_launcher_that_gives_up_stops_the_search_and_fails_nobody():
    whole, cluster, study = search({})
    launch, whole.evaluate = whole.evaluate, lambda jobs: (_ for _ in ()).throw(ConfigError("no launcher"))
    with pytest.raises(ConfigError, match="no launcher"):
        whole.run()
    assert [trial.state for trial in study.trials()] == [TrialState.RUNNING] * 4
    whole.evaluate = launch
    whole.run()
    assert states(study) == [True] * 4 and len(cluster.ran) == 4


def test_another_controller_or_more_candidates_leave_finished_episodes_as_they_are():
    whole, cluster, study = search({}, episodes=2, candidates=2)
    whole.run()
    before = [trial.params for trial in study.trials()]
    whole.search.proposer.controller = lambda seed: RandomSampler(seed + 1)
    whole.run()
    assert [trial.params for trial in study.trials()] == before and len(cluster.ran) == 4
    whole.search = replace(whole.search, settings=SearchSettings(episodes=2, candidates=3, finalists=0))
    whole.run()
    after = [tuple(trial.params.items()) for trial in study.trials()]
    assert len(after) == len(set(after)) == 6  # the whole space, nothing twice
    assert [trial.user_attrs["episode"] for trial in study.trials()] == [0, 0, 1, 1, 0, 1]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_job_that_dies_every_time_has_failed_with_its_last_reason(retries):
    whole, cluster, study = search({1: 99}, retries=retries)
    whole.run()
    assert cluster.ran.count((1,)) == 1 + retries
    assert states(study) == [True, False, True, True]
    assert study.trials()[1].user_attrs["reason"] == f"job (1,) was killed (tried {1 + retries} times)"
    assert study.trials()[1].value is None


def test_a_gang_that_dies_every_time_is_run_one_by_one_to_find_the_one_at_fault():
    whole, cluster, study = search({1: 99}, gang=2, retries=1)
    whole.run()
    assert cluster.ran == [(0, 1), (2, 3), (0, 1), (0,), (1,), (1,)]
    assert states(study) == [True, False, True, True]


def test_too_many_failures_stop_the_search_after_the_episode_and_the_next_run_goes_on():
    whole, cluster, study = search({0: 99, 1: 99, 2: 99}, episodes=2, candidates=3, retries=0, max_failed=0.7)
    with pytest.raises(ConfigError, match=r"^max_failed=0.7: 3 of 3 candidates failed; 1 x job \(0,\)"):
        whole.run()
    assert cluster.ran == [(0,), (1,), (2,)]
    whole.run()  # the failures of the last time are not held against it
    assert states(study) == [False] * 3 + [True] * 3


def test_as_many_failures_as_are_allowed_are_not_too_many():
    whole, _, study = search({0: 99, 1: 99}, retries=0, max_failed=0.5)
    whole.run()
    assert states(study) == [False, False, True, True]


@pytest.mark.parametrize(
    ("setting", "value"), [("retries", -1), ("retries", 0.5), ("max_failed", -0.1), ("max_failed", 1.5), ("gang", 0)]
)
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(ConfigError, match=rf"^{setting}={value}: must be "):
        SearchSettings(episodes=1, candidates=1, finalists=0, **{setting: value})


def test_the_log_names_the_best_so_far_the_first_of_equals():
    whole, _, study = search({})
    lines = []
    log = CandidateLog(whole.search, "mini", 4, lines.append)
    whole.search.propose(0)
    for number, reward in [(2, 0.5), (3, 0.25), (1, 0.5), (0, 0.75)]:
        study.tell(number, reward, {"loss": 0.5}, COST)
        log.log_ended()
    standing = ["0.5000 (best so far)", "0.2500 (best 0.5000)", "0.5000 (best so far)", "0.7500 (best so far)"]
    assert [f"reward {words}" in line for words, line in zip(standing, lines, strict=True)] == [True] * 4
    assert all(f"({count} of 4)" in line for count, line in enumerate(lines, start=1))
    later = CandidateLog(whole.search, "mini", 4, lines.append)
    later.skip_ended()
    later.log_ended()
    assert lines[4:] == ["4 candidates ended in an earlier run; going on with the rest"]


def test_a_finalist_is_logged_with_its_result_of_mini_kd_and_a_failure_with_its_reason():
    whole, _, study = search({}, finalists=2)
    whole.run()
    lines = []
    full = whole.search.full
    FinalistLog(whole.search, "full", 2, lines.append).log_ended()
    assert len(lines) == 2
    assert lines[1] == (
        f"finalist 2 of 2, trial 1 {full.architecture(1)}: loss 0.5000, 1.00 ms on cpu, "
        f"reward {full.trial(1).value:.4f} (after mini-KD {study.trial(1).value:.4f})"
    )
    study.add(full.architecture(0), {"episode": 0, "origin": "random"})
    study.fail(study.trials()[-1].number, "out of memory")
    TrialLog(whole.search, "mini", 4, lines.append).log_ended()
    assert lines[-1].startswith("mini 5 of 5, trial 4 ") and lines[-1].endswith(": failed: out of memory")


def test_gangs_are_of_about_the_same_size():
    sizes = [(12, 768), (12, 768), (6, 384), (6, 384), (4, 288), (4, 288), (3, 192), (3, 192), (2, 96)]
    chosen = [Architecture(layers, 2, hidden, 2 * hidden, "gelu") for layers, hidden in sizes]
    for gang, count in ((1, 9), (2, 5), (3, 3), (4, 3), (9, 1)):
        order = balanced(chosen, gang)
        assert sorted(map(str, order)) == sorted(map(str, chosen))
        gangs = [order[i : i + gang] for i in range(0, 9, gang)]
        assert len(gangs) == count
        if gang > 1:  # the two largest are never together, while there is another gang
            assert count == 1 or all(members.count(chosen[0]) < 2 for members in gangs)
    assert balanced(chosen, 1) == chosen
    sums = [sum(one.size for one in order) for order in (balanced(chosen, 3)[i : i + 3] for i in (0, 3, 6))]
    assert max(sums) < 0.6 * sum(one.size for one in chosen[:3])  # what they would be in turn
