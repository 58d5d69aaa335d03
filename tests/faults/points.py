"""A supervisor that dies at a named point: `TUNER_FAULT=point python -m tests.faults.points`.

What lies before and after each point is what the next supervisor has to make sense of.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from tuner.jobs import launch, slots, supervisor, watch

POINTS: dict[str, tuple[str, Any, str]] = {
    "slot-untaken": ("before", slots, "take"),
    "intent-unwritten": ("before", launch, "write_record"),
    "intent-written": ("before", launch, "spawn"),
    "started-unrecorded": ("after", launch, "spawn"),
    "started": ("after", launch, "start"),
    "dead-unburied": ("before", watch, "end_session"),
    "outcome-unwritten": ("before", watch, "finalize"),
    "outcome-written": ("after", watch, "finalize"),
}


def arm(point: str) -> None:
    """Let this process be killed at a point."""
    when, module, name = POINTS[point]
    real: Callable[..., Any] = getattr(module, name)

    def deadly(*words: Any, **named: Any) -> Any:
        if when == "after":
            real(*words, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, deadly)


if __name__ == "__main__":
    arm(os.environ.pop("TUNER_FAULT"))
    sys.exit(supervisor.main())
