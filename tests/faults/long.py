"""`make test-faults`: the long form. Ends with one line of JSON, and with exit code 1 unless all is as it should be.

python -m tests.faults.long [--kills 200] [--saves 100] [--real 12] [--ranks 8] [--seed 0]

Kills of worker, supervisor and dashboard over a queue of short runs, whose worker is a stand-in that keeps the real
protocol; kills while the real code saves; kills of the real worker program in training, alone and as two processes of
one run, of which either is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from . import real, saving, storm  # noqa: E402
from .tracker import Tracker  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--saves", type=int, default=100)
    parser.add_argument("--real", type=int, default=12)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10_000)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    killed = of_the_real_worker(options.real, options.seed)
    ranks = of_the_real_worker(options.ranks, options.seed, processes=2)
    with tempfile.TemporaryDirectory(prefix="tuner-faults-", ignore_cleanup_errors=True) as home:
        tracker = Tracker()
        os.environ |= {
            "TUNER_HOME": home,
            "PYTHONPATH": str(ROOT),
            "TUNER_WORKER_MODULE": "tests.faults.short_worker",
            "TUNER_SUPERVISOR_IDLE": "3",
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": tracker.uri,
        }
        print(f"{options.saves} kills while saving ...", flush=True)
        unloadable = saving.kill_while_saving(options.saves, options.seed)
        print(f"{options.kills} kills over a queue, the tracker dead for half of them ...", flush=True)
        runs = max(4, options.kills // 3)
        try:
            result = storm.Storm(options.kills, options.seed, runs, tracker=tracker).blow()
        finally:
            tracker.kill()
    print(storm.as_json(result), flush=True)
    said = {
        "kills": result.kills + options.saves + killed.kills + ranks.kills,
        "launched_twice": result.launched_twice + killed.launched_twice + ranks.launched_twice,
        "lost": result.lost + result.unexplained + sum(r.unexplained + r.different for r in (killed, ranks)),
        "left_running": result.left_running + killed.left_running + ranks.left_running,
        "unloadable_checkpoints": unloadable + killed.unloadable + ranks.unloadable,
        "points_lost": result.points_lost + killed.points_lost + ranks.points_lost,
        "points_doubled": result.points_doubled + killed.points_doubled + ranks.points_doubled,
        "worst_detection_s": max(result.worst_detection_s, killed.worst_detection_s),
        "worst_detection_of_a_rank_s": ranks.worst_detection_s,
    }
    print(json.dumps(said), flush=True)
    wrong = sum(v for k, v in said.items() if k != "kills" and "detection" not in k)
    slow = said["worst_detection_s"] > 5 or said["worst_detection_of_a_rank_s"] > 30
    return 1 if wrong or slow else 0


def of_the_real_worker(kills: int, seed: int, processes: int = 1) -> real.Result:
    print(f"{kills} kills of the real worker in training, as {processes} of a run ...", flush=True)
    os.environ |= {"PYTHONPATH": str(ROOT), "TUNER_SUPERVISOR_IDLE": "3", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="tuner-faults-", ignore_cleanup_errors=True) as home:
        os.environ["TUNER_HOME"] = home
        result = real.kill_and_resume(kills, seed, processes)
    print(json.dumps(asdict(result)), flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
