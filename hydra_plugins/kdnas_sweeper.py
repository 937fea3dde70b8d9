"""Where Hydra looks for sweepers; the sweeper itself is `kdnas.sweeper`."""

from kdnas import sweeper


class KDNASSweeper(sweeper.KDNASSweeper):
    """`hydra/sweeper=kdnas`."""
