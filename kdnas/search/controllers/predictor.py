"""The papers' reward predictor: an LSTM that reads two remembered states and a candidate (KD-NAS v2, III-A)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from kdnas.base.files import whole
from kdnas.search.controllers.grid import State

Episode = Sequence[tuple[State, float]]  # the (state, reward) pairs of one episode, in the order they were proposed

REPLAYED = 50
"""The most episodes that an epoch goes through all of. Of more, it goes through a sample, to cost no more."""
SAMPLED = 25  # the number of episodes in such a sample, the latest among them


@dataclass(frozen=True)
class Settings:
    """The sizes of the predictor's network and the settings of its training (see `FeedbackSampler`)."""

    hidden_size: int
    embedding: int
    learning_rate: float
    decay: float
    epochs: int
    replay: bool
    standardise: bool
    seed: int


class RewardPredictor(nn.Module):
    """A one-layer LSTM over three states, each an embedding per dimension; a dimension has `sizes` values."""

    def __init__(self, sizes: Sequence[int], embedding: int, hidden_size: int, seed: int) -> None:
        super().__init__()
        with torch.device("meta"):
            self.embeddings = nn.ModuleList(nn.Embedding(size, embedding) for size in sizes)
            self.lstm = nn.LSTM(len(sizes) * embedding, hidden_size, batch_first=True)
            self.head = nn.Linear(hidden_size, 1)
        self.to_empty(device="cpu")  # no global generator is used
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.embeddings.parameters():
            # Small, so that values not seen yet say little: at PyTorch's deviation of 1 the ranking is far worse.
            nn.init.normal_(parameter, std=0.1, generator=generator)
        bound = hidden_size**-0.5
        for parameter in [*self.lstm.parameters(), *self.head.parameters()]:
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, states: Tensor) -> Tensor:
        """Predicts rewards, (B,), from states, (B, 3, D): GlobalBest, PreviousBest, candidate."""
        steps = torch.cat([table(states[..., axis]) for axis, table in enumerate(self.embeddings)], dim=-1)
        _, (last, _) = self.lstm(steps)
        return self.head(last[-1]).squeeze(-1)


def controller_loss(predicted: Tensor, rewards: Tensor) -> Tensor:
    """Returns ½ Σ (predicted - reward)² over an episode's candidates (v1 Eq. 4, v2 Eq. 3)."""
    return (rewards - predicted).square().sum() / 2


@dataclass(frozen=True)
class Memory:
    """The two best states, which the predictor reads before every candidate, and the reward of the first."""

    global_best: State
    previous_best: State
    reward: float = float("-inf")

    @classmethod
    def start(cls, sizes: Sequence[int], seed: int) -> Memory:
        """Returns the memory before the first episode: a random state in both places."""
        rng = Random(seed)
        state = tuple(rng.randrange(size) for size in sizes)
        return cls(state, state)

    def after(self, episode: Episode) -> Memory:
        # Reversed, because Algorithm 1 compares with >=: of equal rewards, the last counts.
        state, reward = max(reversed(episode), key=lambda pair: pair[1])
        if reward >= self.reward:
            return Memory(state, state, reward)
        return Memory(self.global_best, state, self.reward)

    def inputs(self, states: Sequence[State]) -> Tensor:
        """Returns the predictor's inputs, (B, 3, D), for B states."""
        remembered = torch.tensor([self.global_best, self.previous_best], device="cpu")
        candidates = torch.tensor(states, device="cpu")[:, None]
        return torch.cat([remembered.expand(len(states), -1, -1), candidates], dim=1)


@dataclass(frozen=True)
class Learned:
    """A trained predictor, with everything needed to predict the next episode's rewards and to go on training."""

    model: RewardPredictor
    optimizer: torch.optim.RMSprop
    memory: Memory
    mean: float = 0.0
    scale: float = 1.0
    fingerprint: str = ""
    """A digest of everything that the predictor depends on: its episodes, settings and dimensions."""

    @torch.no_grad()
    def predict(self, states: Sequence[State]) -> list[float]:
        """Returns the expected rewards of states, in the units of the rewards."""
        return (self.model(self.memory.inputs(states)).double() * self.scale + self.mean).tolist()


def untrained(sizes: Sequence[int], settings: Settings) -> Learned:
    model = RewardPredictor(sizes, settings.embedding, settings.hidden_size, settings.seed)
    # All weights in one call: a third faster, and the same to the last bit.
    optimizer = torch.optim.RMSprop(model.parameters(), lr=settings.learning_rate, alpha=0.95, foreach=True)
    return Learned(model, optimizer, Memory.start(sizes, settings.seed))


# A search's jobs report from inside evaluation loops, where gradients may be switched off.
@torch.inference_mode(False)
@torch.enable_grad()
def learn(
    episodes: Sequence[Episode], sizes: Sequence[int], settings: Settings, known: int = 0, before: Learned | None = None
) -> Learned:
    """Trains a predictor after each episode in turn, from the first, as the search has done or would have done.

    With `settings.replay`, an epoch goes through all the episodes so far (see `_replayed`), else through the latest
    alone. An episode's pairs are one batch, and are read with the best states before the episode. Training goes on
    after the `known` first episodes, which the predictor `before` has been trained on; it stays as it is.
    """
    start = before or untrained(sizes, settings)
    model, optimizer = copy.deepcopy((start.model, start.optimizer))  # together: one holds the other's weights
    memory, mean, scale = Memory.start(sizes, settings.seed), start.mean, start.scale
    batches: list[tuple[Tensor, Tensor]] = []
    for number, episode in enumerate(episodes):
        states, rewards = zip(*episode, strict=True)
        batches.append((memory.inputs(states), torch.tensor(rewards, dtype=torch.float64, device="cpu")))
        memory = memory.after(episode)
        if number < known:
            continue
        if settings.standardise:
            mean, scale = _spread([reward for _, reward in batches])
        targets = [((reward - mean) / scale).float() for _, reward in batches]
        rng = Random(f"{settings.seed}/{number}")
        for _ in range(settings.epochs):
            for past in _replayed(number, rng) if settings.replay else [number]:
                optimizer.zero_grad()
                controller_loss(model(batches[past][0]), targets[past]).backward()
                optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= settings.decay
    return Learned(model, optimizer, memory, mean, scale)


def _replayed(latest: int, rng: Random) -> Sequence[int]:
    """Returns the episodes of an epoch, in order: all, or of too many the latest and a sample of the others."""
    if latest < REPLAYED:
        return range(latest + 1)
    return [*sorted(rng.sample(range(latest), SAMPLED - 1)), latest]


def _spread(rewards: Sequence[Tensor]) -> tuple[float, float]:
    seen = torch.cat(list(rewards))
    return seen.mean().item(), seen.std(correction=0).item() or 1.0


def recall(
    fingerprints: Sequence[str],
    latest: Learned | None,
    cache: Path | None,
    episodes: Sequence[Episode],
    sizes: Sequence[int],
    settings: Settings,
) -> Learned:
    """Returns what `learn` does, but goes on from a predictor of the first episodes if `latest` or the cache is one.

    The fingerprint of an episode is a digest of everything that a predictor depends on after it.
    """
    if latest is None or latest.fingerprint not in fingerprints:
        latest = _load(cache, sizes, settings) if cache else None
    known = fingerprints.index(latest.fingerprint) + 1 if latest and latest.fingerprint in fingerprints else 0
    if latest and known == len(episodes):
        return latest
    learned = learn(episodes, sizes, settings, known, latest if known else None)
    learned = replace(learned, fingerprint=fingerprints[-1])
    if cache:
        with contextlib.suppress(OSError):  # a full disk costs time, not the search
            _save(learned, cache)
    return learned


def _save(learned: Learned, path: Path) -> None:
    """Writes a predictor as plain tensors and values, atomically: several jobs may finish an episode at once."""
    memory = learned.memory
    content = {
        "fingerprint": learned.fingerprint,
        "weights": learned.model.state_dict(),
        "optimizer": learned.optimizer.state_dict(),
        "memory": [list(memory.global_best), list(memory.previous_best), memory.reward],
        "units": [learned.mean, learned.scale],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as aside:
        torch.save(content, aside)


@torch.inference_mode(False)
def _load(path: Path, sizes: Sequence[int], settings: Settings) -> Learned | None:
    """Reads what `_save` has written; returns None if it is absent, damaged or of another shape."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        learned = untrained(sizes, settings)
        learned.model.load_state_dict(content["weights"])
        learned.optimizer.load_state_dict(content["optimizer"])
        global_best, previous_best, reward = content["memory"]
        mean, scale = content["units"]
        memory = Memory(tuple(global_best), tuple(previous_best), reward)
        return replace(learned, memory=memory, mean=mean, scale=scale, fingerprint=content["fingerprint"])
    except Exception:  # whatever is wrong with it, it is only a copy
        return None
