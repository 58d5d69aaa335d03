"""A kind of run that trains nothing: it counts. It stands for those to come, of which each is a row of the table too.

`python -m tests.counting RUN_ID` is the worker of a studio that has it.
"""

from __future__ import annotations

import sys
import time

from tuner import worker
from tuner.config.kinds import KINDS, Kind
from tuner.config.knobs import Section, knob
from tuner.config.run_config import RunConfig
from tuner.jobs.live import Live, Outcome
from tuner.text.message import message

KIND = Kind(
    "count",
    "Counting",
    "tests.counting:count",
    family="evaluate",
    verb="count",
    config="tests.counting:CountConfig",
    charts=("loss",),
)


class Count(Section):
    title = "Counting"

    upto: int = knob(5, "What is counted to.", ge=1)
    pause: float = knob(0.0, "How long each number takes.", ge=0, unit="seconds")
    trips_at: int = knob(0, "The number at which it fails.", ge=0)
    use_cpu: bool = knob(True, "Take no GPU.")


class CountConfig(RunConfig, Count):
    of_kind = "count"


def count(config: CountConfig, live: Live) -> Outcome:
    """Count, tell of it, and leave a file."""
    with live.phase("evaluating"):
        live.began(0, config.upto)
        for number in range(1, config.upto + 1):
            if live.wanted():
                return Outcome(stopped=True)
            if number == config.trips_at:
                raise MemoryError
            time.sleep(config.pause)
            live.progress(number / config.upto, message("doing.batches", done=number, total=config.upto))
            live.measured(number, {"loss": 1 / number})
            live.stepped(number, config.upto)
    live.output.mkdir(parents=True, exist_ok=True)
    file = live.output / "counted.txt"
    file.write_text(str(config.upto))
    return Outcome(files=(file,))


def install() -> None:
    KINDS[KIND.name] = KIND


if __name__ == "__main__":
    install()
    sys.exit(worker.main(sys.argv[1]))
