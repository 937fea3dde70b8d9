"""The papers' reward predictor: an LSTM that reads two remembered states and a candidate (KD-NAS v2, III-A)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from kdnas.files import whole

State = tuple[int, ...]
"""A point of the search space: the index of its value in each dimension."""
Episode = Sequence[tuple[State, float]]
"""The (state, reward) pairs of one episode, in the order they were proposed."""


@dataclass(frozen=True)
class Settings:
    """How the predictor is built and trained; the controllers' configs say what each is."""

    hidden_size: int
    embedding: int
    learning_rate: float
    decay: float
    epochs: int
    replay: bool
    standardise: bool
    seed: int


class RewardPredictor(nn.Module):
    """A one-layer LSTM over three states, each the concatenation of an embedding per dimension.

    Args:
        sizes: how many values each of the D dimensions has.
        seed: of the initial weights; no global generator is used.
    """

    def __init__(self, sizes: Sequence[int], embedding: int, hidden_size: int, seed: int) -> None:
        super().__init__()
        with torch.device("meta"):
            self.embeddings = nn.ModuleList(nn.Embedding(size, embedding) for size in sizes)
            self.lstm = nn.LSTM(len(sizes) * embedding, hidden_size, batch_first=True)
            self.head = nn.Linear(hidden_size, 1)
        self.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.embeddings.parameters():
            # Small, so that values not seen yet say little: at PyTorch's deviation of 1 the ranking is far worse.
            nn.init.normal_(parameter, std=0.1, generator=generator)
        bound = hidden_size**-0.5
        for parameter in [*self.lstm.parameters(), *self.head.parameters()]:
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, states: Tensor) -> Tensor:
        """Predicted rewards, (B,), of (B, 3, D) states: GlobalBest, PreviousBest, candidate."""
        steps = torch.cat([table(states[..., axis]) for axis, table in enumerate(self.embeddings)], dim=-1)
        _, (last, _) = self.lstm(steps)
        return self.head(last[-1]).squeeze(-1)


def controller_loss(predicted: Tensor, rewards: Tensor) -> Tensor:
    """½ Σ (predicted - reward)² over an episode's candidates (v1 Eq. 4, v2 Eq. 3)."""
    return (rewards - predicted).square().sum() / 2


@dataclass(frozen=True)
class Memory:
    """The two states that every candidate is read with, and the reward of the first."""

    global_best: State
    previous_best: State
    reward: float = float("-inf")

    @classmethod
    def start(cls, sizes: Sequence[int], seed: int) -> Memory:
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
        """(B, 3, D) for B states."""
        return torch.tensor([[self.global_best, self.previous_best, state] for state in states], device="cpu")


@dataclass(frozen=True)
class Learned:
    """A trained predictor, with what it needs to predict the next episode's rewards."""

    model: RewardPredictor
    memory: Memory
    mean: float = 0.0
    scale: float = 1.0

    @torch.no_grad()
    def predict(self, states: Sequence[State]) -> list[float]:
        """The rewards expected of these states, in one batch, in the units of the rewards."""
        return (self.model(self.memory.inputs(states)).double() * self.scale + self.mean).tolist()


# A search's jobs report from inside evaluation loops, where gradients may be switched off.
@torch.inference_mode(False)
@torch.enable_grad()
def learn(episodes: Sequence[Episode], sizes: Sequence[int], settings: Settings) -> Learned:
    """Replays a search: trains after each episode, from the first, as if the episodes came now.

    With `settings.replay`, an epoch goes through all the episodes so far, else through the latest alone. An
    episode's pairs are one batch, and are read with the best states of before it.
    """
    model = RewardPredictor(sizes, settings.embedding, settings.hidden_size, settings.seed)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=settings.learning_rate, alpha=0.95)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, settings.decay)
    learned = Learned(model, Memory.start(sizes, settings.seed))
    batches: list[tuple[Tensor, Tensor]] = []
    for episode in episodes:
        states, rewards = zip(*episode, strict=True)
        batches.append((learned.memory.inputs(states), torch.tensor(rewards, dtype=torch.float64, device="cpu")))
        mean, scale = _spread([reward for _, reward in batches]) if settings.standardise else (0.0, 1.0)
        pairs = batches if settings.replay else batches[-1:]
        targets = [((reward - mean) / scale).float() for _, reward in pairs]
        for _ in range(settings.epochs):
            for (inputs, _), target in zip(pairs, targets, strict=True):
                optimizer.zero_grad()
                controller_loss(model(inputs), target).backward()
                optimizer.step()
        schedule.step()
        learned = Learned(model, learned.memory.after(episode), mean, scale)
    return learned


def _spread(rewards: Sequence[Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of all rewards so far (1 where they do not differ)."""
    seen = torch.cat(list(rewards))
    return seen.mean().item(), seen.std(correction=0).item() or 1.0


def recall(
    fingerprint: str, cache: Path | None, episodes: Sequence[Episode], sizes: Sequence[int], settings: Settings
) -> Learned:
    """`learn`, unless the cache holds what it would give: `fingerprint` stands for all the other arguments."""
    if cache is None:
        return learn(episodes, sizes, settings)
    learned = _load(fingerprint, cache, sizes, settings)
    if learned is None:
        learned = learn(episodes, sizes, settings)
        with contextlib.suppress(OSError):  # A full disk costs time, not the search.
            _save(learned, fingerprint, cache)
    return learned


def _save(learned: Learned, fingerprint: str, path: Path) -> None:
    """Writes plain tensors and values, whole or not at all: several jobs may finish an episode at once."""
    memory = learned.memory
    content = {
        "fingerprint": fingerprint,
        "weights": learned.model.state_dict(),
        "memory": [list(memory.global_best), list(memory.previous_best), memory.reward],
        "units": [learned.mean, learned.scale],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as aside:
        torch.save(content, aside)


def _load(fingerprint: str, path: Path, sizes: Sequence[int], settings: Settings) -> Learned | None:
    """What `_save` wrote, unless it is absent, damaged or of other observations."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["fingerprint"] != fingerprint:
            return None
        model = RewardPredictor(sizes, settings.embedding, settings.hidden_size, settings.seed)
        model.load_state_dict(content["weights"])
        global_best, previous_best, reward = content["memory"]
        mean, scale = content["units"]
        return Learned(model, Memory(tuple(global_best), tuple(previous_best), reward), mean, scale)
    except Exception:  # Whatever is wrong with it, it is only a copy.
        return None
