"""GET /metrics, in Prometheus' text form."""

from __future__ import annotations

from collections import Counter
from threading import Lock

from tuner.generate.scheduler import Scheduler


class Metrics:
    """Counts of one served run."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.lock = Lock()

    def answered(self, path: str, status: int) -> None:
        with self.lock:
            self.requests[path, status] += 1

    def text(self, scheduler: Scheduler) -> str:
        """All of it."""
        gauges = {
            "tuner_requests_running": ("gauge", "Answers that are being written.", scheduler.running),
            "tuner_requests_waiting": ("gauge", "Answers that wait for room.", len(scheduler.waiting)),
            "tuner_prompt_tokens_total": ("counter", "Prompt tokens read.", scheduler.read),
            "tuner_generation_tokens_total": ("counter", "Tokens written.", scheduler.made),
        }
        lines = []
        for name, (kind, about, value) in gauges.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}", f"{name} {value}"]
        lines += ["# HELP tuner_http_requests_total Requests by path and status."]
        lines += ["# TYPE tuner_http_requests_total counter"]
        with self.lock:
            counted = sorted(self.requests.items())
        lines += [f'tuner_http_requests_total{{path="{p}",status="{s}"}} {n}' for (p, s), n in counted]
        return "\n".join(lines) + "\n"
