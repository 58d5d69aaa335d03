"""`make test-faults`: the long form. Ends with one line of JSON, and with exit code 1 unless all is as it should be.

python -m tests.faults.long [--kills 200] [--saves 100] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from . import saving, storm

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--saves", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10_000)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tuner-faults-", ignore_cleanup_errors=True) as home:
        os.environ |= {
            "TUNER_HOME": home,
            "PYTHONPATH": str(ROOT),
            "TUNER_WORKER_MODULE": "tests.faults.short_worker",
            "TUNER_SUPERVISOR_IDLE": "3",
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlruns/tracker/mlflow.db",
        }
        print(f"{options.saves} kills while saving ...", flush=True)
        unloadable = saving.kill_while_saving(options.saves, options.seed)
        print(f"{options.kills} kills over a queue, the tracker away for half of them ...", flush=True)
        blown = storm.Storm(
            kills=options.kills,
            seed=options.seed,
            runs=max(4, options.kills // 3),
            tracked=True,
            away=True,
        )
        result = blown.blow()
    print(storm.as_json(result), flush=True)
    said = {
        "kills": result.kills + options.saves,
        "launched_twice": result.launched_twice,
        "lost": result.lost + result.unexplained,
        "left_running": result.left_running,
        "unloadable_checkpoints": unloadable,
        "points_lost": result.points_lost,
        "points_doubled": result.points_doubled,
        "worst_detection_s": result.worst_detection_s,
    }
    print(json.dumps(said), flush=True)
    wrong = sum(v for k, v in said.items() if k not in ("kills", "worst_detection_s"))
    return 1 if wrong or result.worst_detection_s > 5 else 0


if __name__ == "__main__":
    sys.exit(main())
