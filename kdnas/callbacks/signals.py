"""A Lightning callback that leaves SIGTERM to whoever listened to it before."""

from __future__ import annotations

import signal

import lightning as L


class LeaveSigterm(L.Callback):
    """Undoes Lightning's listening to SIGTERM, which would end a job of SLURM at its next batch.

    SLURM sends it before it preempts a job or ends one that has run out of time. submitit passes it over, and puts the
    job back into the queue at the signal that is meant for that; a job that has ended by then is not put back.
    """

    def __init__(self) -> None:
        self._before = signal.getsignal(signal.SIGTERM)

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._before)
