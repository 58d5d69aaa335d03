"""The config being put together on the New run page: what it started from and what was changed since.

It lives on disk, so that a refresh, a closed browser or a restarted dashboard loses nothing: one file for each tab,
whose name is in the tab's address.
"""

from __future__ import annotations

import re
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import streamlit as st

from tuner import hardware
from tuner.config.config import KNOBS, check
from tuner.config.kinds import DEFAULT, default_of
from tuner.config.knobs import Knob
from tuner.config.reading import recipes
from tuner.plan import preflight
from tuner.redact import redact
from tuner.runs.run import Run
from tuner.text.lookup import tr
from tuner.ui import state, writes
from tuner.ui.words import value as shown

FIRST = "board"
"""The recipe that leaves everything open."""
STARTER = "starter-dpo"
"""The recipe that can be launched as it is, where the starter pack lies."""
MOST = 30
"""Drafts kept on disk: one for each tab that was opened lately."""
_KEY, _ID, _FIELDS = "draft", "draft-id", "draft-fields"
_NAME = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True)
class Draft:
    """`base` are the values it started from, `changes` what a person has set otherwise since."""

    start: str = FIRST
    base: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    @cached_property
    def values(self) -> Mapping[str, Any]:
        return {**self.base, **self.changes}

    @cached_property
    def every(self) -> Mapping[str, Any]:
        """The value of every knob."""
        return {name: self.value(name) for name in KNOBS}

    def value(self, name: str) -> Any:
        return self.values.get(name, self._default(name))

    def origin(self, name: str) -> Any:
        """What the knob goes back to when it is reset."""
        return self.base.get(name, self._default(name))

    def _default(self, name: str) -> Any:
        return default_of(self.values.get("stage", DEFAULT), name, KNOBS[name].default)

    def with_value(self, name: str, value: Any) -> Draft:
        kept = {n: v for n, v in self.changes.items() if n != name}
        if shown(value) != shown(self.origin(name)):
            kept[name] = value
        return replace(self, changes=kept)

    def without(self, name: str) -> Draft:
        return replace(self, changes={n: v for n, v in self.changes.items() if n != name})


def current() -> Draft:
    """The draft being worked on: this tab's, else the one that its address names, else a copy of the newest, else the
    recipe that a newcomer can launch."""
    if _KEY not in st.session_state:
        named = state.asked("draft")
        own = _read(named) if _NAME.fullmatch(named) else None
        st.session_state[_ID] = named if own else uuid.uuid4().hex[:8]
        st.session_state[_KEY] = own or next(filter(None, map(_read, _kept())), None) or from_recipe(first())
    draft: Draft = st.session_state[_KEY]
    return draft


def keep(draft: Draft) -> None:
    """Make it the draft being worked on, here and on disk. Secrets stay out of the file."""
    current()  # or this tab would have no file of its own yet
    st.session_state[_KEY] = draft
    base, changes = (state.without_secrets(values) for values in (draft.base, draft.changes))
    plain = {"start": draft.start, "base": base, "changes": changes, "name": redact(draft.name)}
    writes.keep_draft(f"{_KEY}-{st.session_state[_ID]}", plain)
    for old in _kept()[MOST:]:
        writes.drop_draft(f"{_KEY}-{old}")


def address() -> None:
    """Name this tab's draft in the URL: a reload finds it again, whatever other tabs have written since."""
    current()
    state.tell(draft=st.session_state[_ID])


def _kept() -> list[str]:
    """The drafts on disk, newest first."""
    return [name.removeprefix(f"{_KEY}-") for name in state.kept_drafts() if name.startswith(f"{_KEY}-")]


def _read(name: str) -> Draft | None:
    kept = state.load_draft(f"{_KEY}-{name}")
    known = {"start": str, "base": dict, "changes": dict, "name": str}
    good = {n: kept[n] for n, kind in known.items() if isinstance(kept.get(n), kind)}
    return Draft(**good) if good.get("base") else None


def start_over(draft: Draft) -> None:
    """Put another draft in its place; the widgets take their values from it."""
    replace_widget()
    keep(draft)


def widget(name: str) -> str:
    """The key of the field that shows a value. The field begins with the draft's value and is never written to.

    A value put into a field's state travels to the browser once, in the one script run that put it there. Where the
    next run overtakes that one, the browser never hears of it, shows an empty field and reports that as a wish. So
    a value set by anything but its own field gets a new field, under a new key.
    """
    return f"knob:{_replaced()[''] + _replaced()[name]}:{name}"


def replace_widget(name: str = "") -> None:
    """Draw a value's field anew, from the draft; without a name every field."""
    _replaced()[name] += 1


def _replaced() -> Counter[str]:
    """How often each field was replaced. It starts where no other session's did: a browser that was cut off comes
    back with the fields of the session before."""
    replaced: Counter[str] = st.session_state.setdefault(_FIELDS, Counter({"": time.time_ns()}))
    return replaced


def starts() -> dict[str, str]:
    """Where a draft can start from: recipes, then saved configs. The key is `kind:name`, the value what is shown."""
    found = {f"recipe:{name}": called(name) for name in sorted(recipes(), key=lambda n: (n != FIRST, n))}
    return found | {f"saved:{name}": tr("{name} (saved)", name=name) for name in state.saved_configs()}


def called(recipe: str) -> str:
    """A recipe as it is shown: the one that leaves everything open says where it comes from."""
    return tr("LLaMA Board defaults") if recipe == FIRST else recipe


def first() -> str:
    """The recipe the form opens with for the first time: one that nothing stands against, if there is one."""
    if STARTER in recipes():
        config, problems = check(from_recipe(STARTER).values)
        if config is not None and not [*problems, *preflight.problems(config)]:
            return STARTER
    return FIRST


def open_with(recipe: str) -> None:
    """Put a recipe in the form, unless it is what the form has now, perhaps changed already."""
    if recipe in recipes() and current().start != recipe:
        start_over(from_recipe(recipe))


def from_start(key: str) -> tuple[Draft, str]:
    """The draft for a key of `starts`, and a sentence where it cannot be read."""
    kind, _, name = key.partition(":")
    if kind == "recipe":
        return from_recipe(name), ""
    return from_file(state.saved_configs().get(name, Path(name)), name)


def from_recipe(name: str) -> Draft:
    """A recipe's values, with bf16 only where this machine has it."""
    values, _ = state.read_config(name)
    if values.get("bf16") and not hardware.bf16():
        del values["bf16"]
    return Draft(start=name, base=values)


def from_file(path: Path, name: str) -> tuple[Draft, str]:
    values, problem = state.read_config(path)
    return Draft(start=name, base=values, name=name), problem


def from_text(text: bytes, name: str) -> tuple[Draft, str]:
    """An uploaded YAML or JSON file as a starting point, and a sentence where it is none."""
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:  # private, and nobody else's
        file.write(text)
        file.flush()
        draft, problem = from_file(Path(file.name), Path(name).stem)
        return draft, problem.replace(file.name, name)


def launched(draft: Draft) -> None:
    """After a launch the values stay, for the next run differs in little; the name does not."""
    keep(replace(draft, name=""))


def from_run(run_id: str) -> tuple[Draft, str]:
    """A past run's values as a starting point, without where it wrote to."""
    try:
        values = Run(run_id).values()
    except ValueError:
        values = {}
    if not values:
        return current(), tr("There is no run {run_id} to clone; choose one in History.", run_id=run_id)
    own = {"output_dir", "run_name", "resume_from_checkpoint"}
    base = {n: v for n, v in values.items() if n not in own and n in KNOBS}
    return Draft(start=tr("clone of {name}", name=Run(run_id).name), base=base), ""


def use_dataset(name: str, stage: str, folder: str) -> None:
    """Put a data set of a catalog folder, and the stage it is good for, into the draft, and open the form. For the
    callback of a button beside a set that the URL names."""
    if state.asked("dataset") != name:  # a click on the button of the set before, which still stood there
        st.toast(tr("The page was updating. Press again."), icon=":material/refresh:")
        return
    replace_widget()
    wanted = {"dataset": [name], "stage": stage, "dataset_dir": folder}
    changed = current()
    for knob, given in wanted.items():
        changed = changed.with_value(knob, given)
    keep(changed)
    state.go("new_run")


def differs(base: Mapping[str, Any]) -> list[tuple[Knob, Any]]:
    """What a starting point sets otherwise than the defaults: each knob with its value, in the form's order."""
    stage = base.get("stage", DEFAULT)
    return [
        (k, base[n])
        for n, k in KNOBS.items()
        if n in base and shown(base[n]) != shown(default_of(stage, n, k.default))
    ]


def typed(knob: Knob, raw: Any) -> Any:
    """What a person typed, as the knob's type where it fits; left as text where not, for the check to speak of."""
    if not isinstance(raw, str):
        return raw
    text = raw.strip()
    if not text:
        return None if knob.optional else [] if knob.kind == "list" else text
    if knob.kind == "list":
        return [part.strip() for part in text.split(",") if part.strip()]
    if knob.kind in ("int", "float"):
        return _number(text, int if knob.kind == "int" else float)
    return text


def _number(text: str, kind: type[int] | type[float]) -> int | float | str:
    try:
        return kind(text.replace(",", ""))
    except ValueError:
        return text
