"""What a filter means in SQL, so that the file is asked for one page of runs and not for all of them.

It has to say what `Table` says of a run that it looks at by itself; a test asks both the same questions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping

from tuner.runs.status import State
from tuner.tracking.rows import NOTE, PARENT, STATE_OF, SWEEP, RunFilter
from tuner.tracking.store import EXPERIMENT

OURS = f"r.experiment_id IN (SELECT experiment_id FROM experiments WHERE name = '{EXPERIMENT}')"  # noqa: S608
PARAMS = ("model_name_or_path", "dataset")
TAGS = f"'{NOTE}', 'reason', 'tuner.run'"
"""Where a searched word may stand, beside name and id."""
ADAPTER_TAGS = "'base', 'stage', 'datasets'"
"""Where a word that is searched for in adapters may stand, beside their names and aliases."""
SETTLED: dict[str, State] = {"FINISHED": "finished", "FAILED": "failed"}
"""The states that MLflow itself tells apart; of the others the studio's own tag knows more."""
Values = list[str]
Condition = tuple[str, Values]
Params = Callable[[str], Mapping[str, str]]


def where(filter: RunFilter, but: Collection[str], params: Params) -> tuple[str, Values]:
    """The condition on `runs r` for all that a filter says, and its values. `but` are MLflow's ids of other runs.

    `params` gives a param of every run that has it: in the file those of one name are far apart, and slow to be asked.
    """
    conditions: list[Condition] = [
        (OURS, []),
        ("r.lifecycle_stage = ?", ["deleted" if filter.deleted else "active"]),
        (f"r.run_uuid NOT IN (SELECT run_uuid FROM tags WHERE key = '{SWEEP}')", []),  # noqa: S608  a constant
    ]
    if but:
        conditions.append(("r.run_uuid NOT IN (SELECT value FROM json_each(?))", [json.dumps(list(but))]))
    conditions += [*_exact(filter, params), *_tagged(filter), *_states(filter), *_words(filter, params)]
    values = [value for _, given in conditions for value in given]
    return " AND ".join(part for part, _ in conditions), values


def _has(table: str, condition: str) -> str:
    return f"r.run_uuid IN (SELECT run_uuid FROM {table} WHERE {condition})"  # noqa: S608  constants only


def _among(ids: Iterable[str]) -> Condition:
    return "r.run_uuid IN (SELECT value FROM json_each(?))", [json.dumps(list(ids))]


def _exact(filter: RunFilter, params: Params) -> list[Condition]:
    found: list[Condition] = []
    if filter.parent:
        found.append((_has("tags", "key = ? AND value = ?"), [PARENT, filter.parent]))
    for key, wanted in (("stage", filter.stage), ("model_name_or_path", filter.model)):
        if wanted:
            found.append(_among(id for id, value in params(key).items() if value == wanted))
    if filter.dataset:
        sets = params("dataset").items()
        found.append(_among(id for id, value in sets if filter.dataset in value.split(",")))
    return found


def _tagged(filter: RunFilter) -> list[Condition]:
    return [
        (_has("tags", "key = ? AND value = ?"), [tag, wanted])
        if wanted
        else (_has("tags", "key = ? AND value IS NOT NULL"), [tag])
        for tag, wanted in filter.tags.items()
    ]


def _states(filter: RunFilter) -> list[Condition]:
    if not filter.states:
        return []
    said = " ".join(f"WHEN '{status}' THEN '{state}'" for status, state in STATE_OF.items())
    tag = "(SELECT value FROM tags t WHERE t.key = 'state' AND t.run_uuid = r.run_uuid)"
    state = f"coalesce(nullif({tag}, ''), CASE r.status {said} ELSE 'running' END)"
    by_status = [status for status, state in SETTLED.items() if state in filter.states]
    wanted = ", ".join("?" * len(filter.states))
    known = ", ".join("?" * len(by_status)) or "NULL"
    settled = ", ".join(f"'{status}'" for status in SETTLED)
    told = f"(r.status IN ({known}) OR (r.status NOT IN ({settled}) AND {state} IN ({wanted})))"
    return [(told, [*by_status, *filter.states])]


def _words(filter: RunFilter, params: Params) -> list[Condition]:
    """Every word somewhere."""
    found = []
    for word in filter.text.lower().split():
        like, given = _like(word)
        tagged = f"key IN ({TAGS}) AND {like.format('value')}"
        parts = [like.format("r.name"), like.format("r.run_uuid"), _has("tags", tagged)]
        among, listed = _among({id for key in PARAMS for id in _saying(word, params(key))})
        found.append((f"({' OR '.join([*parts, among])})", [given] * len(parts) + listed))
    return found


def _like(word: str) -> tuple[str, str]:
    """What asks whether something has a word, and the value for it.

    SQLite folds the case of ASCII alone; other words are left to the function `mentions`.
    """
    if word.isascii():
        return "{} LIKE ? ESCAPE '\\'", f"%{_escaped(word)}%"
    return "mentions({}, ?)", word


def versions_where(words: Iterable[str]) -> tuple[str, Values]:
    """The condition on `model_versions v` that each word, in lower case, stands somewhere."""
    conditions, values = ["v.current_stage != 'Deleted_Internal'"], list[str]()
    for word in words:
        like, given = _like(word)
        parts = [like.format("v.name")] + [
            f"(v.name, v.version) IN (SELECT name, version FROM {table} WHERE {told})"  # noqa: S608  constants
            for table, told in (
                ("model_version_tags", f"key IN ({ADAPTER_TAGS}) AND {like.format('value')}"),
                ("registered_model_aliases", like.format("alias")),
            )
        ]
        conditions.append(f"({' OR '.join(parts)})")
        values += [given] * len(parts)
    return " AND ".join(conditions), values


def _saying(word: str, column: Mapping[str, str]) -> list[str]:
    """The runs whose value has a word. Of ten thousand runs' models a handful are different ones."""
    wanted = {value for value in set(column.values()) if word in value.lower()}
    return [id for id, value in column.items() if value in wanted] if wanted else []


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def mentions(text: object, word: str) -> bool:
    """Whether a text has a word that is in lower case already."""
    return isinstance(text, str) and word in text.lower()
