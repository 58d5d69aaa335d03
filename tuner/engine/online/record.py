"""rollouts.jsonl in the run's folder: each prompt of a step with its answers, what they got and what that taught."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

from tuner.engine.live import LiveRun
from tuner.engine.online.experience import Experience
from tuner.engine.online.rollouts import Rollouts
from tuner.jobs.live import unless_full
from tuner.runs.files import replace_text

NAME = "rollouts.jsonl"
MOST = 300
"""Groups that are kept, the last ones; the file is cut to them once it has twice as many."""


class Record:
    """Writes a run's file. One that is resumed goes on in it, behind its checkpoint."""

    def __init__(self, run: LiveRun):
        self.run, self.path = run, Path(run.run.folder / NAME)
        self.lines: deque[str] = deque(maxlen=MOST)
        self.written = 0
        self.begun = False

    def add(self, step: int, made: Rollouts, learnt: Experience) -> None:
        """The groups of a step."""
        if self.run.quiet.is_set():
            return
        if not self.begun:
            self._begin(step)
        fresh = [_line(group) for group in groups(step, made, learnt)]
        self.lines.extend(fresh)
        self.written += len(fresh)
        with unless_full():
            if self.written > 2 * MOST:
                self._rewrite()
            else:
                with self.path.open("a", encoding="utf-8") as file:
                    file.writelines(fresh)

    def _begin(self, step: int) -> None:
        self.begun = True
        before = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self.lines.extend(f"{line}\n" for line in before if _step(line) < step)
        self._rewrite()

    def _rewrite(self) -> None:
        with unless_full():
            replace_text(self.path, "".join(self.lines))
        self.written = len(self.lines)


def _line(group: dict[str, Any]) -> str:
    return json.dumps(group, ensure_ascii=False) + "\n"


def _step(line: str) -> int:
    """The step of a line; none comes after one that a crash cut off."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62


def groups(step: int, made: Rollouts, learnt: Experience) -> list[dict[str, Any]]:
    """A line for each prompt."""
    count = learnt.generations
    return [
        _group(step, made, learnt, range(first, first + count)) for first in range(0, len(made.ids), count)
    ]


def _group(step: int, made: Rollouts, learnt: Experience, numbers: range) -> dict[str, Any]:
    first = made.completions[numbers[0]]
    answers = [
        {
            "text": made.completions[i].text,
            "reward": made.scored[i].total,
            "parts": dict(made.scored[i].parts),
            "advantage": round(float(learnt.advantages[i]), 6),
            "tokens": made.completions[i].tokens,
            "finished": made.completions[i].finished,
        }
        for i in numbers
    ]
    return {"step": step, "prompt": first.prompt, "label": first.label, "answers": answers}
