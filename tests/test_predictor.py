"""The reward predictor of the papers' controller, against independent arithmetic."""

import random

import numpy as np
import pytest
import torch

from kdnas.search.controllers import predictor
from kdnas.search.controllers.predictor import Memory, RewardPredictor, Settings, controller_loss, learn

SETTINGS = Settings(
    hidden_size=32, embedding=4, learning_rate=1e-2, decay=0.5, epochs=3, replay=False, standardise=False, seed=1
)
SIZES = [3, 2, 4]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_reads_global_best_then_previous_best_then_candidate():
    """Against the LSTM's equations in NumPy (PyTorch's order of gates: input, forget, cell, output)."""
    model = RewardPredictor(SIZES, embedding=4, hidden_size=32, seed=0)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3)  # Larger weights, so that every step shows in the result.
    weights = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    memory, candidate = Memory(global_best=(2, 0, 3), previous_best=(0, 1, 1)), (1, 1, 0)
    hidden, cell = np.zeros(32), np.zeros(32)
    for state in [memory.global_best, memory.previous_best, candidate]:
        step = np.concatenate([weights[f"embeddings.{axis}.weight"][index] for axis, index in enumerate(state)])
        gates = weights["lstm.weight_ih_l0"] @ step + weights["lstm.bias_ih_l0"]
        gates = gates + weights["lstm.weight_hh_l0"] @ hidden + weights["lstm.bias_hh_l0"]
        into, forget, new, out = np.split(gates, 4)
        cell = sigmoid(forget) * cell + sigmoid(into) * np.tanh(new)
        hidden = sigmoid(out) * np.tanh(cell)
    expected = weights["head.weight"][0] @ hidden + weights["head.bias"][0]
    inputs = memory.inputs([candidate, (0, 0, 0)])
    assert inputs.shape == (2, 3, 3)
    assert model(inputs)[0].item() == pytest.approx(expected, abs=1e-5)
    assert model(inputs[:, [1, 0, 2]])[0].item() != pytest.approx(expected, abs=1e-3)


def test_loss_is_half_the_sum_of_squares():
    assert controller_loss(torch.tensor([1.0, 2.0, -1.0]), torch.tensor([3.0, 2.0, 0.0])).item() == 2.5


def test_memory_keeps_the_best_of_all_and_of_the_last_episode():
    start = Memory.start(SIZES, seed=0)
    assert start.global_best == start.previous_best
    first = start.after([((0, 0, 0), -5.0), ((1, 0, 0), -2.0), ((2, 0, 0), -3.0)])
    assert (first.global_best, first.previous_best) == ((1, 0, 0), (1, 0, 0)), "a first reward below 0 still counts"
    second = first.after([((0, 1, 0), -4.0), ((0, 1, 1), -2.5)])
    assert (second.global_best, second.previous_best) == ((1, 0, 0), (0, 1, 1))
    third = second.after([((0, 0, 1), -2.0), ((0, 0, 2), -2.0)])
    assert (third.global_best, third.previous_best) == ((0, 0, 2), (0, 0, 2)), "of equals, the last"


EPISODES = [
    [((0, 0, 0), 0.1), ((1, 1, 1), 0.9), ((2, 0, 2), 0.5)],
    [((0, 1, 3), 0.3), ((2, 1, 0), 0.7)],
    [((1, 0, 3), 0.2), ((0, 0, 1), 0.4)],
]


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("standardise", [False, True])
def test_trains_after_each_episode_as_the_papers_say(replay, standardise):
    """Against the same training written out for three episodes."""
    settings = Settings(**{**SETTINGS.__dict__, "replay": replay, "standardise": standardise})
    start = Memory.start(SIZES, 1).global_best
    contexts = [(start, start), ((1, 1, 1), (1, 1, 1)), ((1, 1, 1), (2, 1, 0))]
    model = RewardPredictor(SIZES, 4, 32, seed=1)
    optimizer = torch.optim.RMSprop(model.parameters(), alpha=0.95)
    for number in range(3):
        optimizer.param_groups[0]["lr"] = [1e-2, 5e-3, 2.5e-3][number]
        so_far = np.array([reward for episode in EPISODES[: number + 1] for _, reward in episode])
        mean, deviation = (so_far.mean(), so_far.std()) if standardise else (0, 1)
        for _ in range(3):
            for past in range(number + 1) if replay else [number]:
                states = torch.tensor([[*contexts[past], state] for state, _ in EPISODES[past]])
                target = torch.tensor([(reward - mean) / deviation for _, reward in EPISODES[past]]).float()
                optimizer.zero_grad()
                (0.5 * (target - model(states)) ** 2).sum().backward()
                optimizer.step()
    learned = learn(EPISODES, SIZES, settings)
    for mine, theirs in zip(model.parameters(), learned.model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    assert (learned.memory.global_best, learned.memory.previous_best) == ((1, 1, 1), (0, 0, 1))
    raw = model(torch.tensor([[(1, 1, 1), (0, 0, 1), (2, 0, 0)]])).item()
    assert learned.predict([(2, 0, 0)])[0] == pytest.approx(raw * deviation + mean, abs=1e-5)


def same_weights(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("known", [1, 2, 3])
def test_goes_on_to_where_training_from_the_first_episode_leads(known, replay, monkeypatch):
    monkeypatch.setattr(predictor, "REPLAYED", 2)
    monkeypatch.setattr(predictor, "SAMPLED", 2)
    settings = Settings(**{**SETTINGS.__dict__, "replay": replay, "standardise": True})
    episodes = [*EPISODES, *EPISODES[:2]]
    whole, start = learn(episodes, SIZES, settings), learn(episodes[:known], SIZES, settings)
    further = learn(episodes, SIZES, settings, known, start)
    assert same_weights(further, whole)
    assert (further.memory, further.mean, further.scale) == (whole.memory, whole.mean, whole.scale)
    assert same_weights(start, learn(episodes[:known], SIZES, settings)), "what it began with stays as it was"
    assert not same_weights(start, whole)


def test_an_epoch_goes_through_all_episodes_but_of_more_than_fifty_through_the_latest_and_a_sample():
    rng = random.Random(0)
    assert [list(predictor._replayed(latest, rng)) for latest in range(50)] == [list(range(n + 1)) for n in range(50)]
    epochs = [list(predictor._replayed(499, rng)) for _ in range(90)]
    for epoch in epochs:
        assert len(epoch) == 25 and epoch == sorted(set(epoch)) and epoch[-1] == 499
    assert len(set().union(*epochs)) > 480, "drawn anew for every epoch, from all"


def test_trains_where_gradients_are_switched_off():
    with torch.inference_mode():
        inside = learn(EPISODES, SIZES, SETTINGS).predict([(0, 0, 0)])
    assert inside == learn(EPISODES, SIZES, SETTINGS).predict([(0, 0, 0)])
    assert inside != learn(EPISODES[:1], SIZES, SETTINGS).predict([(0, 0, 0)])
