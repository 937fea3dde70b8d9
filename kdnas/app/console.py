"""The entry points of a shell: `kdnas-search`, `kdnas-train`, `kdnas-evaluate`, and the scripts of the same names."""

from kdnas.base.signals import listen

listen()  # Ctrl-C may come during the imports below, which take a while

from kdnas.app.command import evaluate, search, train

__all__ = ["evaluate", "search", "train"]
