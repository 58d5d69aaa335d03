"""Typed questions, held to the parser of the transformers that is installed, by whose rules a model will be asked."""

from __future__ import annotations

from typing import Any

from transformers import decision

from tuner.data.decisions import Question, QuestionError, questions_of
from tuner.text.lookup import tr


def parsed_by_transformers(raw: Any) -> list[Question]:
    """As `questions_of`; raises QuestionError, too, where transformers refuses a question or reads other options."""
    found = questions_of(raw)
    try:
        theirs = decision.parse_questions(raw, decision.DecisionConfig())
    except ValueError as error:
        raise QuestionError(tr("transformers refuses it: {error}", error=error)) from error
    for our, their in zip(found, theirs, strict=True):
        if (our.name, list(our.options), list(our.labels)) != (their.name, their.options, their.labels):
            said = tr("transformers reads other options of question {name!r}: {options}",
                      name=our.name, options=", ".join(their.options))  # fmt: skip
            raise QuestionError(said)
    return found
