"""The controllers: the papers' LSTM against independent arithmetic, and what every one of them must keep to."""

import itertools
import math
import random
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
from optuna.trial import TrialState, create_trial
from scipy.stats import spearmanr

from kdnas.base.errors import ConfigError
from kdnas.costs.cost import Cost
from kdnas.models.architecture import Architecture
from kdnas.models.space import ENUMERABLE, SearchSpace
from kdnas.search import proposing
from kdnas.search.controllers import predictor
from kdnas.search.controllers.feedback import FeedbackSampler
from kdnas.search.journal import open_storage
from kdnas.search.proposing import Proposer
from kdnas.search.study import Study

CONFIGS = Path(__file__).resolve().parent.parent / "conf" / "controller"
CONTROLLERS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(autouse=True)
def quiet():
    threads, verbosity = torch.get_num_threads(), optuna.logging.get_verbosity()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(verbosity)


class TestAsOptunaSampler(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return partial(FeedbackSampler, candidates=3, epsilon=0.5, epochs=2, seed=0)


# -- every controller, as a search uses it


def space(constraints=()) -> SearchSpace:
    """96 points. Five heads divide neither hidden size."""
    return SearchSpace([3, 4, 6, 12], [2, 4, 5], [192, 384], [384, 768], ["gelu", "relu"], constraints)


def shallow_if_wide(candidate: Architecture) -> bool:
    return candidate.num_hidden_layers < 12 or candidate.hidden_size < 384


def reward(candidate: Architecture) -> float:
    depth = candidate.num_hidden_layers / 12
    return depth * (1.6 - depth) + candidate.hidden_size / 1000 + 0.1 * (candidate.hidden_act == "gelu")


def factory(name: str, folder: Path, candidates: int = 6):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        controller = compose(name)
    search = {"candidates": candidates, "dir": str(folder)}
    return instantiate(OmegaConf.create({"seed": 3, "search": search, "controller": controller}).controller)


def play(study: Study, failing=lambda number: number % 5 == 2) -> None:
    """Ends the running trials, some of them by failure."""
    for trial in study.trials(TrialState.RUNNING):
        if failing(trial.number):
            study.fail(trial.number, "out of memory")
        else:
            study.tell(trial.number, reward(Architecture.of(trial.params)), {"loss": 0.5}, Cost(1, 1, {}))


def architectures(study: Study) -> list[Architecture]:
    return [Architecture.of(trial.params) for trial in study.trials()]


def search(folder: Path, name: str, seed: int, interrupted: bool = False) -> Study:
    """Three episodes of six. If interrupted, each is cut short while it is written, and goes on in a new process."""
    study = Study(open_storage(folder))
    for episode in range(3):
        if interrupted:
            Proposer(space([shallow_if_wide]), factory(name, folder), seed).propose(study, 2, episode)
            study = Study(open_storage(folder))
        Proposer(space([shallow_if_wide]), factory(name, folder), seed).propose(study, 6, episode)
        play(study)
    return study


@pytest.fixture
def impatient(monkeypatch):
    """A controller that makes useless proposals is soon helped, to save the time of the slow ones."""
    monkeypatch.setattr(proposing, "REPEATS", 5)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", CONTROLLERS)
class TestEveryController:
    def test_search(self, name, tmp_path):
        folders = [tmp_path / run for run in ("through", "interrupted", "other")]
        for folder in folders:
            folder.mkdir()
        study = search(folders[0], name, seed=0)
        found = architectures(study)
        assert len(set(found)) == len(found) == 18, "never the same twice"
        assert all(shallow_if_wide(one) and one.num_attention_heads != 5 for one in found), "members of the space"
        assert [trial.user_attrs["episode"] for trial in study.trials()] == [0] * 6 + [1] * 6 + [2] * 6
        assert {trial.user_attrs["origin"] for trial in study.trials()} <= {"random", "controller"}
        assert architectures(search(folders[1], name, seed=0, interrupted=True)) == found
        assert architectures(search(folders[2], name, seed=100)) != found

    def test_goes_on_after_an_episode_of_failures(self, name, tmp_path):
        study = Study(open_storage(tmp_path))
        for episode in range(3):
            Proposer(space(), factory(name, tmp_path), 0).propose(study, 6, episode)
            play(study, failing=lambda _, episode=episode: episode != 1)
        assert len(set(architectures(study))) == 18

    def test_runs_a_small_space_to_exhaustion(self, name, tmp_path):
        small = SearchSpace([3, 4, 6], [2], [192], [384, 768], ["gelu", "relu"], [lambda one: one.hidden_act == "gelu"])
        study = Study(open_storage(tmp_path))
        for episode in range(3):
            Proposer(small, factory(name, tmp_path, candidates=4), 0).propose(study, 4, episode)
            play(study, failing=lambda number: number == 1)
        assert sorted(map(str, architectures(study))) == sorted(map(str, small.members))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", ["feedback", "nsgaii", "random", "tpe"])
def test_a_billion_architectures_are_never_listed(name, tmp_path, monkeypatch):
    numbers = list(range(1, 201))
    acts = [f"activation {number}" for number in range(25)]
    huge = SearchSpace(numbers, [1, 2, 4, 8, 16], [16 * n for n in numbers], numbers, acts)
    assert huge.size == 10**9

    product = itertools.product

    def listing(*dimensions):
        assert math.prod(map(len, dimensions)) <= ENUMERABLE
        return product(*dimensions)

    monkeypatch.setattr(itertools, "product", listing)
    study = Study(open_storage(tmp_path))
    for episode in range(3):
        Proposer(huge, factory(name, tmp_path), 0).propose(study, 6, episode)
        play(study)
    found = architectures(study)
    assert len(set(found)) == 18 and all(one in huge for one in found)
    assert huge.example in huge


def test_proposing_leaves_the_earlier_trials_as_they_were(tmp_path):
    study = search(tmp_path, "tpe", seed=0)
    before = [repr(trial) for trial in study.trials()]
    Proposer(space([shallow_if_wide]), factory("tpe", tmp_path), 0).propose(study, 6, 3)
    assert [repr(trial) for trial in study.trials()[:18]] == before
    assert [repr(trial) for trial in Study(open_storage(tmp_path)).trials()[:18]] == before


# -- the sampler

GRID = {
    "layers": CategoricalDistribution((3, 4, 6, 12)),
    "act": CategoricalDistribution(("gelu", "relu", "silu")),
    "width": IntDistribution(64, 256, step=64),
}


def value(params) -> float:
    return 50 + params["layers"] + params["width"] / 64 - 3 * (params["act"] == "relu")


def sampler(**kwargs) -> FeedbackSampler:
    return FeedbackSampler(**{"candidates": 4, "seed": 0, "epsilon_decay": 0.25, "epsilon_min": 0.25, **kwargs})


def optimised(trials: int, direction: str = "maximize", **kwargs) -> optuna.Study:
    study = optuna.create_study(sampler=sampler(**kwargs), direction=direction)
    sign = 1 if direction == "maximize" else -1
    for _ in range(trials):
        trial = study.ask(GRID)
        study.tell(trial, sign * value(trial.params))
    return study


def attributes(study: optuna.Study, name: str) -> list:
    return [trial.user_attrs[name] for trial in study.trials]


def test_epsilon_falls_to_its_minimum():
    picks = FeedbackSampler(candidates=20).random_picks
    assert [picks(episode) for episode in range(23)] == [
        20,
        19,
        18,
        17,
        16,
        15,
        14,
        13,
        12,
        11,
        10,
        9,
        8,
        7,
        6,
        5,
        4,
        3,
        2,
        1,
        1,
        1,
        1,
    ]
    picks = FeedbackSampler(candidates=8).random_picks
    assert [picks(episode) for episode in (0, 1, 2, 3, 5, 10, 18, 19, 50)] == [8, 8, 8, 7, 6, 4, 1, 1, 1]
    assert FeedbackSampler(candidates=100).random_picks(9) == 55


def test_an_episode_is_the_controllers_picks_then_random_ones():
    study = optimised(20)
    r, c = "random", "controller"
    assert attributes(study, "origin") == [r, r, r, r, c, r, r, r, c, c, r, r, c, c, c, r, c, c, c, r]
    predictions = attributes(study, "prediction")
    assert predictions[:4] == [None] * 4
    assert all(45 < predicted < 75 for predicted in predictions[4:]), "in the units of the rewards"


def test_controller_picks_are_the_best_predicted_of_what_is_not_seen():
    study = optimised(12)
    expected = sorted(sampler().expected(study), key=lambda point: -point[1])
    assert len(expected) == 48
    seen = [trial.params for trial in study.trials]
    unseen = [(params, reward) for params, reward in expected if params not in seen]
    for _ in range(4):
        study.ask(GRID)
    *best, last = study.trials[12:]
    assert [(trial.params, trial.user_attrs["prediction"]) for trial in best] == unseen[:3]
    assert last.user_attrs["origin"] == "random"
    assert (last.params, last.user_attrs["prediction"]) in unseen[3:]


def test_minimising_is_maximising_the_negative():
    up, down = optimised(16), optimised(16, direction="minimize")
    assert [trial.params for trial in up.trials] == [trial.params for trial in down.trials]
    assert attributes(up, "prediction")[4:] == [-predicted for predicted in attributes(down, "prediction")[4:]]


def test_failed_trials_teach_nothing_but_are_seen_and_have_their_place():
    study = optimised(9)
    before = sampler().expected(study)
    running, failed = study.ask(GRID), study.ask(GRID)
    study.tell(failed, state=TrialState.FAIL)
    study.add_trial(create_trial(state=TrialState.FAIL, params=running.params, distributions=GRID))
    study.add_trial(create_trial(state=TrialState.PRUNED, value=99, params=running.params, distributions=GRID))
    assert sampler().expected(study) == before
    study.add_trial(create_trial(value=99, params=running.params, distributions=GRID))
    assert sampler().expected(study) != before
    asked = [study.ask(GRID) for _ in range(2)]
    assert all(trial.params not in [running.params, failed.params] for trial in asked)
    assert [trial.user_attrs["origin"] for trial in study.trials[14:]] == ["controller", "random"]


def test_the_episode_is_the_trials_own_and_rejected_ones_have_no_place():
    study = optimised(8)
    for rejected in [True, True, False, False, False, False]:
        study.enqueue_trial({}, user_attrs={"episode": 7})
        study.ask(GRID).set_user_attr("rejected", rejected)
    assert attributes(study, "origin")[8:] == ["controller"] * 5 + ["random"]
    assert len({str(trial.params) for trial in study.trials[8:]}) == 6, "rejected ones are not proposed again"


def test_repeats_nothing_until_all_is_seen():
    study = optimised(1)
    for _ in range(47):
        study.ask(GRID)
    assert len({str(trial.params) for trial in study.trials}) == 48
    assert study.ask(GRID).params in [trial.params for trial in study.trials[:48]]
    assert study.trials[-1].user_attrs["origin"] == "random"


def test_what_waits_is_seen():
    study = optimised(1)
    *others, waiting, left = (params for params, _ in sampler().expected(study) if params != study.trials[0].params)
    for params in others:
        study.add_trial(create_trial(state=TrialState.FAIL, params=params, distributions=GRID))
    study.enqueue_trial(waiting)
    trial = study._storage.get_trial(study._storage.create_new_trial(study._study_id))
    assert study.sampler.sample_relative(study, trial, GRID) == left


def test_learns_only_from_earlier_episodes():
    """So that the order in which an episode's trials end cannot change what it proposes."""
    proposals = []
    for told in (0, 3):
        study = optimised(8)
        for _ in range(told):
            trial = study.ask(GRID)
            study.tell(trial, value(trial.params))
        proposals.append([study.ask(GRID).params for _ in range(4 - told)][-1])
    assert proposals[0] == proposals[1]


def test_ranks_a_pool_of_a_space_too_large_to_list():
    grid = {f"x{number}": IntDistribution(0, 9) for number in range(6)} | {"y": FloatDistribution(0, 1)}
    study = optuna.create_study(sampler=sampler(epochs=1), direction="maximize")
    for _ in range(10):
        trial = study.ask(grid)
        study.tell(trial, sum(trial.params.values()))
    expected = sampler(epochs=1).expected(study)
    assert 9_000 < len(expected) <= 10_000 and len(expected[0][0]) == 6
    assert sampler(epochs=1).expected(study) == expected
    assert attributes(study, "origin")[4] == "controller"
    assert 0 <= study.trials[4].params["y"] <= 1


def test_touches_no_global_generator():
    states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    optimised(12)
    assert [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()] == states


@pytest.mark.parametrize("seed", [0, 1])
def test_reading_on_is_reading_anew(seed):
    """Against a controller that meets the study for the first time, at every proposal; trials end in any order."""
    rng = random.Random(seed)
    study = optuna.create_study(sampler=sampler(epochs=1), direction="maximize")
    running = []
    for _ in range(20):
        twin = optuna.create_study(sampler=sampler(epochs=1), direction="maximize")
        twin.add_trials(study.get_trials())
        running.append(study.ask(GRID))
        assert twin.ask(GRID).params == running[-1].params
        rng.shuffle(running)
        for trial in [running.pop() for _ in range(rng.randrange(len(running) + 1))]:
            failed = rng.random() < 0.2
            study.tell(trial, None if failed else value(trial.params), TrialState.FAIL if failed else None)


def test_the_grid_is_of_the_dimensions_that_all_finished_trials_have():
    study = optimised(8)
    assert len(study.sampler.expected(study)) == 48
    narrow = {**GRID, "act": CategoricalDistribution(("gelu", "tanh"))}
    study.add_trial(create_trial(value=1, params={"layers": 3, "act": "tanh", "width": 64}, distributions=narrow))
    space = optuna.search_space.intersection_search_space(study.get_trials())
    assert list(space) == ["layers", "width"]
    assert study.sampler.infer_relative_search_space(study, study.trials[0]) == space
    assert len(study.sampler.expected(study)) == 16
    assert study.sampler.expected(study) == sampler().expected(study)


# -- what it remembers


@pytest.fixture
def trainings(monkeypatch):
    """The number of episodes of every training."""
    calls = []
    trained = predictor.learn
    monkeypatch.setattr(
        predictor, "learn", lambda episodes, *rest: calls.append(len(episodes)) or trained(episodes, *rest)
    )
    return calls


def test_trains_when_an_episode_ends_and_not_when_asked(trainings):
    study = optimised(7)
    assert trainings == [1]
    study.tell(study.ask(GRID), 1.0)
    assert trainings == [1, 2]
    for _ in range(4):
        study.ask(GRID)
    assert trainings == [1, 2]


def test_waits_for_all_of_an_episode(trainings):
    study = optimised(0)
    asked = [study.ask(GRID) for _ in range(4)]
    for trial in reversed(asked[1:]):
        study.tell(trial, 1.0)
    assert trainings == []
    study.tell(asked[0], state=TrialState.FAIL)
    assert trainings == [1]


def test_a_cached_predictor_serves_another_process(tmp_path, trainings):
    cache = tmp_path / "new" / "controller.pt"
    study = optimised(8, cache=cache)
    assert trainings == [1, 2]
    again = sampler(cache=cache).expected(study)
    assert trainings == [1, 2], "it was loaded"
    assert again == sampler().expected(study)
    assert list(cache.parent.iterdir()) == [cache]
    content = torch.load(cache, weights_only=True)
    assert set(content) == {"fingerprint", "weights", "optimizer", "memory", "units"}


@pytest.mark.parametrize("damage", ["cut", "other", "text", "shape"])
def test_a_cache_of_no_use_is_ignored(tmp_path, damage):
    cache = tmp_path / "controller.pt"
    study = optimised(8, cache=cache)
    content = cache.read_bytes()
    if damage == "cut":
        cache.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        cache.write_text("no predictor")
    elif damage == "shape":
        loaded = torch.load(cache, weights_only=True)
        cache.unlink()
        torch.save({**loaded, "weights": {"head.bias": torch.zeros(1)}}, cache)
    else:
        optimised(4, cache=cache)
    damaged = cache.read_bytes()
    assert sampler(cache=cache).expected(study) == sampler().expected(study)
    assert cache.read_bytes() != damaged, "and replaced"


def test_a_long_search_that_loses_its_cache_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch, trainings):
    monkeypatch.setattr(predictor, "REPLAYED", 2)
    monkeypatch.setattr(predictor, "SAMPLED", 2)
    found = []
    for losing in (False, True):
        folder = tmp_path / str(losing)
        folder.mkdir()
        controller = partial(sampler, cache=folder / "controller.pt", model_seed=0, candidates=6)
        study = Study(open_storage(folder))
        for episode in range(6):
            Proposer(space(), controller, 0).propose(study, 6, episode)
            play(Study(study.optuna._storage, controller=controller(seed=0)))
            if losing and episode == 3:
                (folder / "controller.pt").unlink()
                study = Study(open_storage(folder))
        found.append([(trial.params, trial.user_attrs.get("prediction")) for trial in study.trials()])
    assert found[0] == found[1]
    assert trainings == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 4, 5, 6]


def test_one_model_throughout_although_every_episode_has_its_seed():
    study = optimised(8)
    assert sampler(seed=5, model_seed=1).expected(study) == sampler(seed=6, model_seed=1).expected(study)
    assert sampler(seed=5).expected(study) != sampler(seed=6).expected(study)


@pytest.mark.parametrize(
    ("key", "given", "allowed"),
    [
        ("candidates", 0, "a whole number from 1"),
        ("epochs", 1.5, "a whole number from 1"),
        ("epsilon", 1.5, "from 0 to 1"),
        ("epsilon_min", -0.1, "from 0 to 1"),
        ("epsilon_decay", "x", "from 0 to 1"),
        ("decay", float("nan"), "from 0 to 1"),
        ("learning_rate", 0, "a number above 0"),
    ],
)
def test_says_what_is_wrong_with_an_argument(key, given, allowed):
    with pytest.raises(ConfigError) as error:
        FeedbackSampler(**{"candidates": 4, key: given})
    assert str(error.value) == f"{key}={given}: must be {allowed}"


# -- whether it learns


def smooth(params) -> float:
    """Falls off with size on one side and with latency on the other."""
    size = (params["layers"] / 3) ** 0.7 * (params["hidden"] / 192) ** 0.8 * (params["ffn"] / 384) ** 0.25
    latency = params["layers"] * (4 * params["hidden"] ** 2 + 2 * params["hidden"] * params["ffn"] + 150_000)
    return (1 - 0.28 / size - 0.01 * (params["act"] == "relu")) * latency**-0.06


@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_the_space_after_ten_episodes(seed, tmp_path):
    grid = {
        "layers": CategoricalDistribution([3, 4, 6, 10, 12]),
        "heads": CategoricalDistribution([2, 3, 4, 6, 12]),
        "hidden": CategoricalDistribution([192, 288, 384, 576]),
        "ffn": CategoricalDistribution([384, 512, 576, 768, 1024, 1536, 2048, 3072]),
        "act": CategoricalDistribution(["gelu", "relu", "silu"]),
    }
    controller = factory("feedback", tmp_path, candidates=20)(seed=seed)
    study = optuna.create_study(sampler=controller, direction="maximize")
    noise = random.Random(seed)
    for _ in range(10):
        for trial in [study.ask(grid) for _ in range(20)]:
            study.tell(trial, smooth(trial.params) + noise.gauss(0, 0.002))
    points, expected = zip(*controller.expected(study), strict=True)
    truth = [smooth(point) for point in points]
    untrained = factory("feedback", tmp_path, candidates=20)(seed=seed, learning_rate=1e-12, cache=None)
    assert len(points) == 2400
    assert spearmanr(expected, truth).statistic > 0.8
    assert abs(spearmanr([reward for _, reward in untrained.expected(study)], truth).statistic) < 0.6
