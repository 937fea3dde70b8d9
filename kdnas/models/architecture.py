"""An architecture: the five searched values (the papers' *state*)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

from kdnas.base.errors import ConfigError


@dataclass(frozen=True)
class Architecture:
    """The five searched values, under the names of Hugging Face's configs; a `ConfigError` refuses impossible ones."""

    num_hidden_layers: int
    num_attention_heads: int
    hidden_size: int
    intermediate_size: int
    hidden_act: str

    def __post_init__(self) -> None:
        for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"architecture.{name}={value!r}: must be a whole number from 1")
        if not isinstance(self.hidden_act, str):
            raise ConfigError(f"architecture.hidden_act={self.hidden_act!r}: must be the name of an activation")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"architecture.num_attention_heads={self.num_attention_heads}: "
                f"must divide architecture.hidden_size={self.hidden_size}"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Architecture:
        """Makes an architecture from a mapping of the five names and nothing else."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"architecture.{name}={values[name]!r}: not a key; the keys are {', '.join(known)}")
        for name in known:
            if name not in values:
                raise ConfigError(f"architecture.{name}: missing; the keys are {', '.join(known)}")
        return cls(**values)

    @property
    def size(self) -> int:
        """The approximate number of weights: those of the layers, and of a vocabulary of 30,000."""
        return self.num_hidden_layers * (4 * self.hidden_size + 2 * self.intermediate_size) * self.hidden_size + (
            30_000 * self.hidden_size
        )

    def to_dict(self) -> dict[str, int | str]:
        return asdict(self)

    def __str__(self) -> str:
        """Returns the papers' notation: [layers, heads, hidden size, FFN size, activation]."""
        return f"[{', '.join(str(value) for value in astuple(self))}]"
