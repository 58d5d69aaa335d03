"""Sends to MLflow what it does not have yet, once it is back."""

from __future__ import annotations

from tuner.tracking.adapters import register_pending
from tuner.tracking.mirror import Ledger, bring, held
from tuner.tracking.run import Run


def sync(run: Run, wait: float = 0.0) -> int:
    """Bring MLflow up to a run's folder; the number of points sent. Raises TrackerError.

    0 where another process is sending for this run (its worker, mostly), after waiting `wait` seconds for it.
    """
    with held(run, wait) as mine:
        if not mine:
            return 0
        sent = bring(run, Ledger.of(run))
        register_pending(run)
    if run.status().tracking:
        run.update(tracking="")
    return sent
