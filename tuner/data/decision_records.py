"""Records with typed questions in the normal form, by all the names that other tools have for their parts.

Normal rows are {"state", "questions": {name: {"type", "instructions", "criteria"}}, "gold": {name: [a probability an option]}}.
Only questions with gold are kept. Sets of ms-swift, Unsloth and the hub differ in names, and many keep questions
and gold as JSON text, because tables pad objects with nulls.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from tuner.data.decisions import CHOICE, NOUL, SCORE, TYPES, Question, QuestionError, questions_of
from tuner.data.entries import Entry
from tuner.data.turns import Notes, Row, UnfitError, is_nothing
from tuner.text.lookup import tr

STATES = ("state", "context", "input", "document", "text")
QUESTIONS = ("questions", "fields", "question")
GOLD = ("gold", "answers", "targets", "labels", "expected", "answer", "target", "label")
PARTS = (("state", STATES), ("questions", QUESTIONS), ("gold", GOLD))
TABLES = (".parquet", ".arrow")
"""Files whose objects all have the keys of all rows, with nulls where a row has none."""
_INSTRUCTIONS = ("instructions", "instruction", "question", "description", "prompt", "text")
_CRITERIA = ("criteria", "options", "choices", "levels", "labels", "values")
_NAMES = ("name", "id", "key")
_TYPE_NAMES = {
    **dict.fromkeys(("noul", "bool", "boolean", "yes_no", "yesno", "binary"), NOUL),
    **dict.fromkeys(("choice", "choices", "categorical", "category", "enum", "select", "multiple_choice"), CHOICE),
    **dict.fromkeys(("score", "scale", "ordinal", "rating", "likert", "level"), SCORE),
}  # fmt: skip
_TRUTHS = {"true": "true", "false": "false", "yes": "true", "no": "false", "1": "true", "0": "false"}
_VALUES = ("label", "value", "answer", "choice", "noul", "score", "gold")
_SHARES = ("probabilities", "distribution", "probs", "soft_labels")


def is_decisions(record: Mapping[str, Any]) -> bool:
    """Whether a record looks like one of these: it has a state, and questions that are objects with types."""
    with suppress(UnfitError):
        asked = _asked(_value(record, QUESTIONS), padded=False)
        return any(name in record for name in STATES) and any(
            isinstance(one, Mapping) and one.get("type") for one in asked.values()
        )
    return False


def decisions(record: Mapping[str, Any], entry: Entry, notes: Notes) -> Row:
    """A record in the normal form. Raises UnfitError."""
    state, raw, gold = (_value(record, _names(entry, part, usual)) for part, usual in PARTS)
    if is_nothing(state):
        raise UnfitError(tr("no state"), tr("there is nothing that the questions are about"))
    padded = entry.location.endswith(TABLES) or not entry.local
    asked = _asked(raw, padded)
    told = _parsed(gold) if not is_nothing(gold) else {}
    if not isinstance(told, Mapping):
        told = dict.fromkeys(asked, told) if len(asked) == 1 else {}
    own = {name: one for name in asked if not is_nothing(one := _own_gold(asked[name]))}
    told = {**own, **{str(name): one for name, one in told.items() if not is_nothing(one)}}
    if unknown := [name for name in told if name not in asked]:
        raise UnfitError(
            tr("unknown question"), tr("gold answers {name!r}, which is not asked", name=unknown[0])
        )
    told = {name: _by_place(asked[name], one) for name, one in told.items()}
    wanted = {name: _request(asked[name], told[name], padded) for name in asked if name in told}
    if not wanted:
        raise UnfitError(tr("no answer"), tr("no question of the record has gold"))
    try:
        found = questions_of(wanted)
    except QuestionError as error:
        raise UnfitError(tr("broken question"), str(error)) from error
    if len(wanted) < len(asked):
        notes.add(tr("questions without gold"), ", ".join(sorted(set(asked) - set(wanted))))
    return {
        "state": state,
        "questions": wanted,
        "gold": {question.name: shares(question, told[question.name]) for question in found},
    }


# --- the parts of a record -----------------------------------------------------------------------------------------


def _names(entry: Entry, part: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    named = entry.columns.get(part)
    return (named,) if named else usual


def _value(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    """What stands under the first of these names that says something."""
    return next((record[name] for name in names if not is_nothing(record.get(name))), None)


def _parsed(value: Any) -> Any:
    """The value of a JSON text; anything else as it is."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _asked(raw: Any, padded: bool) -> dict[str, Any]:
    """Questions by name, as a record has them: an object, a list of objects that say their names, or one by itself."""
    value = _parsed(raw)
    if isinstance(value, Mapping) and (value.get("type") in _TYPE_NAMES):
        value = {str(_value(value, _NAMES) or "answer"): value}
    if isinstance(value, list):
        value = {str(_value(one, _NAMES) if isinstance(one, Mapping) else None): one for one in value}
    if not isinstance(value, Mapping):
        raise UnfitError(tr("no questions"), tr("questions are an object: a name and a question each"))
    found = {str(name): _parsed(one) for name, one in value.items()}
    return {name: one for name, one in found.items() if not (one is None or (padded and _empty(one)))}


def _empty(value: Any) -> bool:
    """Whether a table put it there: nulls all the way down."""
    return all(map(_empty, value.values())) if isinstance(value, Mapping) else value is None


def _own_gold(question: Any) -> Any:
    return (
        _value(question, ("gold", "answer", "target", "label", "expected"))
        if isinstance(question, Mapping)
        else None
    )


def _request(raw: Any, gold: Any, padded: bool) -> dict[str, Any]:
    """A question as the System One interface has it."""
    if not isinstance(raw, Mapping):
        raise UnfitError(
            tr("broken question"), tr("a question is an object, this is {kind}", kind=type(raw).__name__)
        )
    kind = _TYPE_NAMES.get(str(raw.get("type", "")).lower().replace("-", "_"))
    if kind is None:
        raise UnfitError(
            tr("broken question"),
            tr(
                "the type is {kind!r}, it must be one of {types}",
                kind=raw.get("type"),
                types=", ".join(TYPES),
            ),
        )
    made: dict[str, Any] = {"type": kind}
    if not is_nothing(said := _value(raw, _INSTRUCTIONS)):
        made["instructions"] = said if isinstance(said, dict | list) else str(said)
    criteria = _parsed(_value(raw, _CRITERIA))
    if not is_nothing(criteria):
        made["criteria"] = _criteria(kind, criteria, gold, padded)
    return made


def _criteria(kind: str, criteria: Any, gold: Any, padded: bool) -> Any:
    if kind == SCORE:
        levels = list(_levels(criteria).values()) if isinstance(criteria, Mapping) else criteria
        return [_said(level) for level in levels] if isinstance(levels, list) else levels
    if isinstance(criteria, list) and kind == CHOICE:
        return {str(option): None for option in criteria}
    if not isinstance(criteria, Mapping):
        return criteria
    options = {
        _TRUTHS.get(str(k).lower(), str(k)) if kind == NOUL else str(k): v for k, v in criteria.items()
    }
    if padded and any(v is not None for v in options.values()):
        named = set(map(str, gold)) if isinstance(gold, Mapping) else {str(gold)}
        options = {k: v for k, v in options.items() if v is not None or k in named}
    return {k: None if v is None else _said(v) for k, v in options.items()}


def _levels(criteria: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Levels by their names, the lowest first: by number where all names are numbers, else as they are."""
    if not all(str(name).isdecimal() for name in criteria):
        return criteria
    return dict(sorted(criteria.items(), key=lambda level: int(level[0])))


def _said(value: Any) -> Any:
    """A description: a number is its digits."""
    return value if isinstance(value, str | dict | list) else str(value)


# --- gold ----------------------------------------------------------------------------------------------------------


def shares(question: Question, gold: Any) -> list[float]:
    """The probability of each option by what a record says: a value, shares by option or in their order, or an object with
    one of them. Raises UnfitError for what is not among the options."""
    gold = _object(gold)
    if isinstance(gold, Mapping):
        soft, hard = _value(gold, _SHARES), _value(gold, _VALUES)
        named = {_option(question, key) for key in gold}
        if soft is not None:
            return shares(question, soft)
        if hard is not None and None in named:
            return shares(question, hard)
        return _normal(question, _whole(question, {_known(question, k): v for k, v in gold.items()}))
    if isinstance(gold, list) and len(gold) == len(question.options):
        return _normal(question, dict(zip(question.options, gold, strict=True)))
    if question.type == NOUL and type(gold) is float and 0 < gold < 1:
        return _normal(question, {"true": gold, "false": 1 - gold})
    return _normal(question, {_known(question, gold): 1.0})


def _by_place(raw: Any, gold: Any) -> Any:
    """Gold of levels that have numbers or names of their own (1 to 5) by their places from 0, as `shares` has it. Raises
    UnfitError for a number that no level has."""
    kind = _TYPE_NAMES.get(str(raw.get("type", "")).lower()) if isinstance(raw, Mapping) else None
    names = _names_of_levels(_parsed(_value(raw, _CRITERIA))) if kind == SCORE else []
    return _placed(names, gold) if names else gold


def _names_of_levels(criteria: Any) -> list[str]:
    """What gold calls levels where that is not their place: the keys of an object, or levels that are numbers themselves."""
    found = list(_levels(criteria)) if isinstance(criteria, Mapping) else criteria
    names = [str(name) for name in found] if isinstance(found, list) else []
    own = isinstance(criteria, Mapping) or all(name.isdecimal() for name in names)
    return names if own and names != [str(place) for place in range(len(names))] else []


def _placed(names: list[str], gold: Any) -> Any:
    gold = _object(gold)
    if isinstance(gold, Mapping):
        if set(map(str, gold)) <= set(names):
            return {str(names.index(str(name))): share for name, share in gold.items()}
        if _value(gold, ("legend",)) is not None:  # an answer of /v1/systemone, which counts from 0
            return gold
        inner = (*_SHARES, *_VALUES)
        return {key: _placed(names, value) if key in inner else value for key, value in gold.items()}
    if isinstance(gold, list):
        return gold
    text = str(int(gold) if type(gold) is float and gold.is_integer() else gold).strip()
    if text in names:
        return names.index(text)
    if text.isdecimal() and all(name.isdecimal() for name in names):
        said = tr("gold {gold} is no level, they are {levels}", gold=text, levels=", ".join(names[:8]))
        raise UnfitError(tr("unknown gold"), said[:300])
    return gold


def _object(gold: Any) -> Any:
    """An object or a list that is told as JSON text; a text is an option's name."""
    return _parsed(gold) if isinstance(gold, str) and gold.lstrip().startswith(("{", "[")) else gold


def _option(question: Question, value: Any) -> str | None:
    """The option that a value means; None where there is none."""
    if type(value) is float and value.is_integer():
        value = int(value)
    text = str(value).strip()
    if question.type == NOUL:
        return _TRUTHS.get(text.lower())
    if text in question.options:
        return text
    return (
        question.options[question.descriptions.index(value)]
        if question.type == SCORE and value in question.descriptions
        else None
    )


def _known(question: Question, value: Any) -> str:
    found = _option(question, value)
    if found is None:
        some = ", ".join(question.options[:8])
        said = tr(
            "question {name!r} has gold {value!r}, its options are {some}",
            name=question.name,
            value=value,
            some=some,
        )
        raise UnfitError(tr("unknown gold"), said[:300])
    return found


def _whole(question: Question, shares: Mapping[str, Any]) -> Mapping[str, Any]:
    """A probability of yes or of no alone says the other one too."""
    (option, share), *others = [one for one in shares.items() if one[1] is not None] or [("", None)]
    if question.type != NOUL or others or not isinstance(share, int | float) or not 0 <= share <= 1:
        return shares
    return {option: share, "false" if option == "true" else "true": 1 - share}


def _normal(question: Question, by_option: Mapping[str, Any]) -> list[float]:
    """Shares that add up to 1."""
    given = [by_option.get(option) or 0.0 for option in question.options]
    if not all(isinstance(p, int | float) and math.isfinite(p) and p >= 0 for p in given) or sum(given) <= 0:
        said = tr(
            "question {name!r} has shares {given}, they are numbers from 0 on",
            name=question.name,
            given=given,
        )
        raise UnfitError(tr("unknown gold"), said[:300])
    return [float(p) / sum(given) for p in given]
