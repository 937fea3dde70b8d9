"""The schedule: which jobs a search runs, and in which order."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from kdnas.base.errors import ConfigError
from kdnas.search.job import Job
from kdnas.search.search import Search, SearchSettings, reasons


class Schedule(ABC):
    """Decides which jobs a search runs. Jobs that die, gangs and failures are the loop's (see `kdnas.search.loop`)."""

    @abstractmethod
    def batches(self, search: Search) -> Iterator[Sequence[Job]]:
        """Adds trials to the search's studies and yields their jobs, in batches of one kind, which may be empty.

        The next batch is taken when all trials of the last have ended. A search that goes on takes the batches from the
        first again: trials that have been added are not added anew.
        """

    def expected(self, settings: SearchSettings) -> dict[str, int]:
        """Returns the number of trials, as far as known, of each kind of job that has trials; each kind has a study."""
        return {"mini": settings.episodes * settings.candidates, "full": settings.finalists}


class Episodes(Schedule):
    """The papers' schedule: episodes of candidates; then the best candidates are distilled in full."""

    def batches(self, search: Search) -> Iterator[Sequence[Job]]:
        for episode in range(search.settings.episodes):
            search.propose(episode)
            yield search.mini.jobs()
        yield search.corrections()  # before the rewards choose the finalists
        for seen in search.best()[: search.settings.finalists]:
            search.promote(seen)
        yield search.full.jobs()
        if search.settings.finalists and not search.full.observations:
            raise ConfigError(f"search: no finalist could be distilled in full; {reasons(search.full)}")
