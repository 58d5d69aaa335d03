"""All that a page can change, and the only way to it: each of these asks first who is there, and says afterwards who did it.

No page and no other module of tuner/ui calls a function that changes something but through here; a test holds it.
Where nobody logs in they are what they are elsewhere.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any, ParamSpec, TypeVar

from tuner.chats import asking, battle, decisions, kept, writing
from tuner.config.knobs import ConfigError
from tuner.config.run_config import RunConfig
from tuner.data import additions, derived, mending, upload
from tuner.data.entries import Entry
from tuner.jobs import cleaning, control, offline, queue, serving, webhook
from tuner.jobs import submit as submitting
from tuner.rewards.registry import refused_by_pages
from tuner.runs import events
from tuner.runs.locks import LockHeldError
from tuner.runs.run import Run
from tuner.text.lookup import mark
from tuner.tracking import adapters, runs
from tuner.tracking.store import TrackerError
from tuner.ui import login, state
from tuner.ui.login import ReadOnly

P = ParamSpec("P")
T = TypeVar("T")
Told = Iterator[tuple[str, str, str]]
"""What was done, to which run ("" for none), and what else is to be said."""
FAILED = (ReadOnly, control.Refused, ConfigError, TrackerError, LockHeldError, ValueError, OSError)
"""What anything here may raise, each with one sentence for the person who asked."""
_log = logging.getLogger("tuner.ui")


def may() -> bool:
    """Whether this person may change anything."""
    return not login.person().why_not


def locked(*, help: str | None = None, disabled: bool = False) -> dict[str, Any]:
    """`help` and `disabled` of a widget that changes something: disabled, with the reason, for who may not."""
    why = login.person().why_not
    return {"help": why or help, "disabled": bool(why) or disabled}


def _guarded(act: Callable[P, T], told: Callable[..., Told]) -> Callable[P, T]:
    """`act` for those who may; `told` makes of its result and its arguments what is written down."""

    @functools.wraps(act)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        who = login.person()
        if who.why_not:
            raise ReadOnly(who.why_not)
        with events.acting(who.name):
            result = act(*args, **kwargs)
            if who.name:
                _record(told(result, *args, **kwargs))
        return result

    return guarded


def _record(told: Told) -> None:
    try:
        for what, run_id, about in told:
            events.record(what, run_id, about)
    except OSError:  # it is done; that nobody could write it down must not look as if it were not
        _log.exception("Who did this could not be written down.")


def _run(what: str) -> Callable[..., Told]:
    """Told of a function whose first argument is a run's id, with its other words."""

    def told(_: object, run_id: str, *more: object, **words: object) -> Told:
        yield what, run_id, ", ".join(str(word) for word in (*more, *words.values()) if word != "")

    return told


def _said(what: str) -> Callable[..., Told]:
    """Told of a function that concerns no run."""

    def told(_: object, *more: object) -> Told:
        yield what, "", " ".join(str(word) for word in more)

    return told


def _launched(made: Run | list[Run], *_: object, **__: object) -> Told:
    for run in made if isinstance(made, list) else [made]:
        yield mark("launch"), run.id, ""


def _ended(_: object, run: Run, now: bool = False, **__: object) -> Told:
    yield mark("cancel") if now else mark("stop"), run.id, ""


def _resumed(_: object, run: Run, checkpoint: object = None, **__: object) -> Told:
    yield mark("resume"), run.id, str(checkpoint or "")


def _paused(_: object, paused: bool = True) -> Told:
    yield mark("pause the queue") if paused else mark("resume the queue"), "", ""


def _held(_: object, run_id: str, held: bool = True) -> Told:
    yield mark("hold back") if held else mark("let start"), run_id, ""


def _cleaned(gone: cleaning.Plan, *_: object) -> Told:
    for run_id, group in groupby(gone.items, key=lambda item: item.run):
        yield mark("clean"), run_id, ", ".join(item.path.name for item in group)


def _uploaded(path: object, _: object, name: str, *__: object) -> Told:
    yield mark("upload"), "", f"{name} as {path}"


def _catalogued(_: object, name: str, path: object, *__: object) -> Told:
    yield mark("add to the catalog"), "", f"{name}: {path}"


def _served(run: Run, *_: object, **__: object) -> Told:
    if not events.of(run):  # one that lives already was launched by somebody
        yield mark("launch"), run.id, ""


def _added(made: Entry, *_: object) -> Told:
    yield mark("add a row to a data set"), "", made.name


def _derived(made: Entry, entry: Entry, *_: object) -> Told:
    yield "add to the catalog", "", f"{made.name}: made of {entry.name}"


def _voted(made: battle.Battle, *_: object) -> Told:
    yield mark("vote"), "", f"{made.left.id} against {made.right.id}: {made.said}"


def _nothing(*_: object, **__: object) -> Told:
    return iter(())


def _refuse(values: Mapping[str, Any]) -> None:
    if problems := refused_by_pages(values):
        raise ConfigError(problems)


def _submit(config: RunConfig, *more: Any, **words: Any) -> Run:
    """Queue a run, unless its config names code that no page may choose. Raises ConfigError."""
    _refuse(config.plain())
    return submitting.submit(config, *more, **words)


def _sweep(values: Mapping[str, Any], *more: Any, **words: Any) -> list[Run]:
    """Queue a run for every combination, unless one names code. Raises ConfigError."""
    _refuse(values)
    return submitting.sweep(values, *more, **words)


submit = _guarded(_submit, _launched)
sweep = _guarded(_sweep, _launched)
stop = _guarded(control.stop, _ended)
resume = _guarded(control.resume, _resumed)

delete_run = _guarded(runs.delete_run, _run(mark("delete")))
restore_run = _guarded(runs.restore_run, _run(mark("restore")))
purge = _guarded(runs.purge, _run(mark("remove for good")))
rename_run = _guarded(runs.rename_run, _run(mark("rename")))
set_note = _guarded(runs.set_note, lambda _, run_id, __: iter([(mark("note"), run_id, "")]))
set_tag = _guarded(runs.set_tag, _run(mark("tag")))
delete_tag = _guarded(runs.delete_tag, _run(mark("take a tag away")))

pause = _guarded(queue.pause, _paused)
hold_back = _guarded(queue.hold_back, _held)
move = _guarded(queue.move, _run(mark("move in the queue to")))

set_alias = _guarded(adapters.set_alias, _said(mark("set an alias")))
delete_alias = _guarded(adapters.delete_alias, _said(mark("take an alias away")))
set_card = _guarded(
    adapters.set_note, lambda _, name, version, __: iter([(mark("model card"), "", f"{name} {version}")])
)
delete_adapter = _guarded(adapters.delete_adapter, _said(mark("delete an adapter")))

clean = _guarded(cleaning.clean, _cleaned)
set_offline = _guarded(offline.set_offline, lambda _, on: iter([(mark("set offline"), "", str(on))]))
test_webhook = _guarded(webhook.test, _nothing)

serve = _guarded(serving.start, _served)
change_talk = _guarded(kept.change_talk, _nothing)
forget_talk = _guarded(kept.forget, _said(mark("delete a chat")))
ask = _guarded(asking.ask, _nothing)
ask_both = _guarded(asking.ask_both, _nothing)
silence = _guarded(writing.stop, _nothing)
add_row = _guarded(additions.add, _added)
begin_battle = _guarded(battle.begin, _nothing)
vote = _guarded(battle.vote, _voted)
decide = _guarded(decisions.decide, _nothing)

receive = _guarded(upload.receive, _uploaded)
local_file = _guarded(upload.local_file, _nothing)  # any file of this machine is shown: not for readers
derive = _guarded(derived.derive, _derived)
add_dataset = _guarded(upload.save, _catalogued)
mend_dataset = _guarded(
    mending.mended, lambda made, *_: iter([(mark("add to the catalog"), "", made.entry.name)])
)
save_config = _guarded(
    state.save_config, lambda path, *_: iter([(mark("save a config"), "", str(path.name))])
)


def keep_draft(name: str, values: dict[str, Any]) -> None:
    """Keep what is being typed on disk. Of who may change nothing it lives in the session only."""
    if may():
        state.keep_draft(name, values)


def drop_draft(name: str) -> None:
    """Remove a draft; one that is not there is no error."""
    if may():
        state.drop_draft(name)
