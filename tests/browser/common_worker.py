"""The real worker, and for runs whose name begins with "paced" the one of paced_worker.py that learns nothing."""

from __future__ import annotations

import sys

from tests.browser import paced_worker
from tuner import worker
from tuner.runs.run import Run

if __name__ == "__main__":
    if Run(sys.argv[1]).name.startswith("paced"):
        worker._train = paced_worker.train
    sys.exit(worker.main(sys.argv[1]))
