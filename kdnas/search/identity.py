"""The identity of a search: its own name, and the settings under which the trials of a study count."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import optuna

from kdnas.base.identity import SOURCES


class Identity:
    """The identity of one study, kept in the attributes of Optuna's study.

    Args:
        study: Optuna's study.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    @property
    def search(self) -> str | None:
        """The search that the study belongs to. A job of another search must not report to it."""
        return self._study.user_attrs.get("search")

    @search.setter
    def search(self, name: str) -> None:
        self._study.set_user_attr("search", name)

    @property
    def settings(self) -> Mapping[str, Any] | None:
        """Everything that decides the rewards, by dotted key; None in a new study."""
        return self._study.user_attrs.get("settings")

    @settings.setter
    def settings(self, settings: Mapping[str, Any]) -> None:
        self._study.set_user_attr("settings", dict(settings))

    @property
    def generation(self) -> str:
        """A digest of the settings that trials are counted under; empty where settings never change."""
        return self._study.user_attrs.get("generation", "")

    def begin_generation(self, settings: Mapping[str, Any]) -> bool:
        """Stores the settings that trials are counted under from now on; returns whether they differ from before.

        Where the data's files are makes no difference.
        """
        before = self.generation
        decisive = {key: value for key, value in settings.items() if key != SOURCES}
        self.settings = settings
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        self._study.set_user_attr("generation", digest)
        return digest != before
