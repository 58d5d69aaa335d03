"""A model that marks answers, asked by any OpenAI-compatible address."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence

from tuner.config.evaluation import EvaluateConfig
from tuner.config.knobs import ConfigError, Problem
from tuner.evaluate.questions import Question
from tuner.redact import redact
from tuner.text.lookup import tr

KEY = "JUDGE_API_KEY"
ASKED = (
    "You mark answers. Read the question, the expected answer and the answer given, and write a whole number from 1 (useless or "
    "wrong) to 10 (as good as the expected one), and nothing else.\n\n"
    "Question:\n{question}\n\nExpected answer:\n{expected}\n\nAnswer given:\n{said}"
)
MARK = re.compile(r"\b(10|[1-9])\b")
SECONDS = 120


class _Direct(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: urllib would take the key along to whatever host an answer names."""

    def redirect_request(self, *asked: object) -> None:
        return None


class Judge:
    """The judge of a config."""

    def __init__(self, config: EvaluateConfig):
        self._opened = urllib.request.build_opener(_Direct)
        self.url = str(config.judge_url).rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.model = config.judge_model or "default"

    def mean(self, asked: Sequence[Question], said: Sequence[str], check: Callable[[], None]) -> float:
        """The mean mark of the answers, 1 to 10. `check` is called before each and may raise.

        Raises ConfigError where the judge gives none.
        """
        marks: list[int] = []
        for one, answer in zip(asked, said, strict=True):
            check()
            marks.append(self.mark(one, answer))
        return sum(marks) / len(marks)

    def mark(self, one: Question, said: str) -> int:
        """One answer's mark, 1 to 10."""
        text = ASKED.format(question=one.shown, expected=one.expected, said=said)
        answer = self._ask(text)
        found = MARK.search(answer)
        if found is None:
            raise _wrong(
                tr(
                    "The judge at {url} wrote {answer!r} instead of a mark from 1 to 10; take another judge_model.",
                    url=redact(self.url),
                    answer=answer[:80],
                )
            )
        return int(found[1])

    def _ask(self, text: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)  # noqa: S310  the person's own
        try:
            with self._opened.open(request, timeout=SECONDS) as reply:
                found = json.loads(reply.read())
            return str(found["choices"][0]["message"]["content"])
        except (urllib.error.URLError, OSError, ValueError, LookupError, TypeError) as error:
            said = tr(
                "The judge at {url} gave no answer ({error}); look at --judge_url, --judge_model and {key}.",
                url=redact(self.url),
                error=error,
                key=KEY,
            )
            raise _wrong(said) from error


def _wrong(said: str) -> ConfigError:
    return ConfigError([Problem("judge_url", said)])
