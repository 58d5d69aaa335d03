"""A version's answers on disk: one JSON object a line, each written when it is there, so that a crash loses none.

The rows are LLaMA-Factory's (`prompt`, `predict`, `label`) with the question's number in front; they lie in the order in
which they were answered until all are there, then in the questions' own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuner.evaluate.questions import Question
from tuner.runs.files import replace_text

FILE = "generated_predictions.jsonl"


class Predictions:
    """The answers of one version in a folder of its own. Those that lie there already are taken over."""

    def __init__(self, folder: Path, asked: Sequence[Question]):
        self.path = folder / FILE
        self.asked = asked
        folder.mkdir(parents=True, exist_ok=True)
        self.rows = {row["row"]: row for row in _whole_lines(self.path) if _fits(row, asked)}
        self._write_all()
        self._file = self.path.open("a", encoding="utf-8")

    @property
    def missing(self) -> list[int]:
        """The questions that are still to be answered, by their number."""
        return [number for number in range(len(self.asked)) if number not in self.rows]

    def add(self, number: int, said: str) -> None:
        """Keep an answer: in the file before this returns. What a power cut takes is asked once more."""
        one = self.asked[number]
        self.rows[number] = {"row": number, "prompt": one.shown, "predict": said, "label": one.expected}
        self._file.write(_line(self.rows[number]))
        self._file.flush()

    def done(self) -> list[str]:
        """All answers in the questions' order; the file is in that order from here on."""
        self._file.close()
        self._write_all()
        return [self.rows[number]["predict"] for number in range(len(self.asked))]

    def mark(self, more: Sequence[Mapping[str, Any]]) -> None:
        """Write something beside each answer, in the questions' order."""
        for number, said in enumerate(more):
            self.rows[number] |= said
        self._write_all()

    def _write_all(self) -> None:
        replace_text(self.path, "".join(_line(self.rows[number]) for number in sorted(self.rows)))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file as far as they were written to the end."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1]:  # what no line break ends was cut off
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def _fits(row: Mapping[str, Any], asked: Sequence[Question]) -> bool:
    """Whether a row answers the question that has its number now."""
    number = row.get("row")
    if not isinstance(number, int) or not 0 <= number < len(asked) or not isinstance(row.get("predict"), str):
        return False
    return (row.get("prompt"), row.get("label")) == (asked[number].shown, asked[number].expected)
