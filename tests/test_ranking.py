"""Which candidate a search recommends, against orders worked out by hand."""

import math
from functools import partial

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import InMemoryStorage

from kdnas.base.errors import ConfigError
from kdnas.base.metrics import deciding_metric, quality
from kdnas.costs.cost import Cost, Latency
from kdnas.models.architecture import Architecture
from kdnas.models.space import SearchSpace
from kdnas.reports import Results, answer
from kdnas.reports.notes import notes
from kdnas.reports.table import candidates, table
from kdnas.reports.text import as_text
from kdnas.search.journal import open_storage
from kdnas.search.proposing import Proposer
from kdnas.search.ranking import ByReward, final_ranking, ranked_architecture
from kdnas.search.study import Study

TEACHER = Cost(10_000_000, 10**9, {"cpu": Latency(10.0, 0.5)})


def architecture(number):
    return Architecture(1 + number, 2, 16, 32, "gelu")


def measured(milliseconds, busy=False):
    return Cost(10**6, 10**7, {"cpu": Latency(milliseconds, 0.1, busy)})


def searched(storage, mini, full=(), **facts):
    """Studies of candidates (reward, metrics, cost, origin) and finalists (candidate, reward, metrics, cost)."""
    studies = Study(storage), Study(storage, "full")
    studies[0].teacher = TEACHER
    studies[0].store_prepared(facts)
    for number, (reward, metrics, cost, *origin) in enumerate(mini):
        studies[0].add(architecture(number), {"episode": 0, "origin": (*origin, "controller")[0]})
        studies[0].tell(number, reward, metrics, cost)
    for number, (candidate, reward, metrics, cost) in enumerate(full):
        studies[1].add(architecture(candidate), {"episode": 0, "origin": "controller", "candidate": candidate})
        studies[1].tell(number, reward, metrics, cost, export=f"full/{candidate}")
    return studies


@pytest.fixture
def overtaken(tmp_path):
    """Four candidates, the second of which is better and faster than the first once both are distilled in full."""
    mini = [(0.9 - 0.1 * k, {"loss": 0.5 + 0.1 * k}, measured(3.0 - 0.2 * k)) for k in range(4)]
    full = [(0, 0.70, {"loss": 0.302}, measured(2.34)), (1, 0.80, {"loss": 0.205}, measured(2.2))]
    return tmp_path, *searched(open_storage(tmp_path), mini, full)


def test_full_results_decide_and_mini_kd_orders_the_rest(overtaken):
    _, mini, full = overtaken
    assert [one.mini.trial for one in final_ranking(ByReward(), mini, full)] == [1, 0, 2, 3]
    assert [one.mini_rank for one in final_ranking(ByReward(), mini, full)] == [2, 1, 3, 4]
    assert [one.mini.trial for one in final_ranking(ByReward(), mini)] == [0, 1, 2, 3]


def test_the_best_the_table_and_from_search_name_the_same_candidate(overtaken):
    folder, mini, full = overtaken
    results = Results.of("demo", mini, full, 2)
    text = answer(results)
    assert text.startswith(f"Best of 4: {architecture(1)} (trial 1")
    assert "rank           1 after the full distillation, 2 after mini-KD" in text and "full/1" in text
    assert list(table(results)["trial"][:2]) == [1, 0]
    with pytest.raises(ConfigError, match="has not finished"):
        ranked_architecture(str(folder))
    mini.order = [one.mini.trial for one in results.ranking]
    assert [ranked_architecture(str(folder), rank) for rank in (1, 2, 3)] == [architecture(n) for n in (1, 0, 2)]
    assert ranked_architecture(str(folder), trial=0) == architecture(0)
    with pytest.raises(ConfigError, match="^trial=9: must be a finished candidate"):
        ranked_architecture(str(folder), trial=9)
    with pytest.raises(ConfigError, match="^rank=5: must be from 1 to 4"):
        ranked_architecture(str(folder), 5)


def test_a_dominated_finalist_is_not_recommended_whatever_its_reward():
    metrics = [{"accuracy": 0.7, "loss": 0.1}, {"accuracy": 0.8, "loss": 0.9}, {"accuracy": 0.9, "loss": 0.9}]
    costs = [measured(3.0), measured(2.0), measured(9.0)]
    mini = [(0.5, metrics[k], costs[k]) for k in range(3)]
    full = [(k, reward, metrics[k], costs[k]) for k, reward in ((0, 0.9), (1, 0.1), (2, 0.05))]
    found = final_ranking(ByReward(), *searched(InMemoryStorage(), mini, full))
    assert [one.mini.trial for one in found] == [1, 0, 2]  # 1 is better and faster than 0; 2 has the least reward


def test_the_losses_of_terms_never_decide_and_less_of_them_is_better():
    assert deciding_metric(["loss", "loss_queries", "accuracy"]) == "accuracy"
    assert deciding_metric(["loss", "loss_queries", "loss_hidden_states"]) == "loss"
    assert quality({"loss": 0.2, "loss_queries": 0.9}) == -0.2 > quality({"loss": 0.8, "loss_queries": 0.1})
    assert quality({"loss_queries": 0.9}, "loss_queries") == -0.9


def test_the_order_that_a_search_has_decided_on_is_the_reports(overtaken):
    _, mini, full = overtaken
    decided = [one.mini.trial for one in reversed(final_ranking(ByReward(), mini, full))]
    mini.order = decided
    assert [one.mini.trial for one in Results.of("demo", mini, full).ranking] == decided


def test_the_quieter_of_two_measurements_counts():
    mini = [(0.5, {"loss": 0.5}, measured(9.0, busy=True)), (0.4, {"loss": 0.6}, measured(4.0))]
    full = [(0, 0.6, {"loss": 0.4}, measured(3.0)), (1, 0.5, {"loss": 0.5}, measured(8.0, busy=True))]
    first, second = final_ranking(ByReward(), *searched(InMemoryStorage(), mini, full))
    assert (first.cost.latency["cpu"].median, second.cost.latency["cpu"].median) == (3.0, 4.0)


# -- notes and tables


def test_busy_latencies_are_marked_and_explained():
    mini, full = searched(InMemoryStorage(), [(0.5, {"loss": 0.5}, measured(9.0, busy=True))])
    results = Results.of("demo", mini, full, 1)
    assert list(as_text(results)["latency cpu (ms)"]) == ["9.00 ± 0.10*", "10.00 ± 0.50"]
    assert candidates(results)["busy cpu"][0] is True
    assert any("busy host" in note for note in notes(results)) and "1.1x as fast as the teacher*" in answer(results)


@pytest.mark.parametrize(
    ("accuracy", "chance", "told"), [(0.345, 0.333, True), (0.36, 0.333, False), (0.2, 0.333, True)]
)
def test_candidates_at_chance_are_said_to_be(accuracy, chance, told):
    facts = {"chance": {"accuracy": chance}, "held_out_rows": 1000, "teacher_metrics": {"accuracy": 0.6}}
    mini = [(0.3, {"accuracy": accuracy, "loss": 1.1}, measured(1.0)), (0.3, {"accuracy": 0.3, "loss": 1}, measured(1))]
    results = Results.of("demo", *searched(InMemoryStorage(), mini, **facts), 1)
    assert any(note.startswith("no candidate is above chance") for note in notes(results)) == told  # error 0.0149
    frame = table(results).set_index("model")
    assert frame["held-out accuracy"]["teacher"] == 0.6 and frame["held-out accuracy"]["chance"] == chance
    assert math.isnan(frame["held-out loss"]["teacher"])


@pytest.mark.parametrize(("chosen", "told"), [(0, True), (1, True), (2, False)])
def test_a_search_without_a_controller_to_speak_of_is_a_random_search(chosen, told):
    origins = ["controller"] * chosen + ["random"] * (8 - chosen)
    mini = [(0.3, {"loss": 1.1}, measured(1.0), origin) for origin in origins]
    results = Results.of("demo", *searched(InMemoryStorage(), mini), 1)
    assert any(note.startswith("this was a random search") for note in notes(results)) == told


def test_every_candidate_is_in_one_table_with_its_ranks_or_its_reason():
    rows = [(0.5, {"accuracy": 0.6, "loss": 0.9}, measured(3.0)), (0.7, {"accuracy": 0.5, "loss": 0.8}, measured(2.0))]
    mini, full = searched(InMemoryStorage(), rows, precision="32-true")
    mini.add(architecture(5), {"episode": 1, "origin": "random"})
    mini.fail(2, "out of memory")
    frame = candidates(Results.of("demo", mini, full, 1)).set_index("trial")
    assert list(frame["rank by reward"][:2]) == [1, 2] and list(frame.index) == [1, 0, 2]
    assert (frame["rank by accuracy"][0], frame["rank by latency cpu"][0]) == (1, 2)
    assert (frame["state"][2], frame["reason"][2], frame["num_hidden_layers"][2]) == ("failed", "out of memory", 6)
    assert set(frame["precision"]) == {"32-true"}


# -- what optuna-dashboard draws


def test_trials_carry_flat_figures_curves_and_ordered_dimensions():
    mini = Study(InMemoryStorage())
    mini.teacher = TEACHER
    space = SearchSpace([12, 2, 4], [2], [16], [32], ["relu", "gelu"])
    mini.add(
        Architecture(4, 2, 16, 32, "gelu"),
        {"episode": 0, "origin": "random"},
        Proposer(space, RandomSampler, 0).distributions,
    )
    for epoch, accuracy in ((1, 0.4), (2, math.nan), (3, 0.6)):
        mini.report(0, epoch, {"loss": 1.0, "accuracy": accuracy})
    mini.tell(0, 0.5, {"accuracy": 0.6, "loss": 0.7}, measured(2.5))
    (trial,) = mini.trials()
    flat = {"accuracy": 0.6, "loss": 0.7, "latency_cpu_ms": 2.5, "parameters_m": 1.0, "speedup_cpu": 4.0}
    assert flat.items() <= trial.user_attrs.items()
    assert trial.intermediate_values == {1: 0.4, 3: 0.6}
    assert mini.optuna.metric_names == ["reward"]
    assert trial.distributions["num_hidden_layers"].choices == (2, 4, 12)
    assert trial.distributions["hidden_act"].choices == ("relu", "gelu")  # names have no order


def test_curves_change_nothing_that_a_controller_proposes():
    space = SearchSpace([1, 2, 3, 4], [2], [16, 32], [32, 64], ["gelu", "relu"])
    proposed = []
    for watched in (False, True):
        study = Study(InMemoryStorage())
        controller = partial(TPESampler, n_startup_trials=2)
        Proposer(space, controller, 0).propose(study, 4, 0)
        for number in range(4):
            if watched:
                study.report(number, 1, {"loss": 9.0 - number})
            study.tell(number, 0.1 * (number * 7 % 4), {"loss": 0.5}, measured(1.0))
        Proposer(space, controller, 0).propose(study, 4, 1)
        proposed.append([trial.params for trial in study.trials()])
    assert proposed[0] == proposed[1]
    assert list(Proposer(space, controller, 0).distributions["hidden_size"].choices) == [16, 32]
    assert optuna.trial.TrialState.RUNNING in {trial.state for trial in study.trials()}
