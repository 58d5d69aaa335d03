"""What tells MLflow of a run, in the process in which the run lives."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def here(patch: pytest.MonkeyPatch) -> None:
    """Let workers of this process tell MLflow by the same words, and without a process beside them."""
    from tuner import worker
    from tuner.runs.run import Run
    from tuner.tracking.mirror import Mirror
    from tuner.tracking.mirror_process import WORDS, MirrorProcess

    class MirrorHere(MirrorProcess):
        def __init__(self, run: Run):
            self._run, self._mirror = run, Mirror(run)

        def __exit__(self, *why: object) -> None:
            self._mirror.close()

        def _ask(self, word: str, timeout: float | None) -> dict[str, str]:
            return WORDS[word](self._run, self._mirror)

    patch.setattr(worker, "MirrorProcess", MirrorHere)
