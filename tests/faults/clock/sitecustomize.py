"""A machine whose clock is set while it runs: with this folder in PYTHONPATH, a process tells the time off by what the
file named by TUNER_CLOCK says, in seconds."""

import os
import time

real = time.time


def told() -> float:
    with open(os.environ["TUNER_CLOCK"]) as file:
        return real() + float(file.read() or 0)


if "TUNER_CLOCK" in os.environ:
    time.time = told
