"""Room made on the disk: first a plan of exactly what would go, then, once somebody agreed, that and nothing else.

Only what can be had again or is not needed any more is ever in a plan: checkpoints of ended runs, and caches. A run's
files are removed under its lock, so that no worker and no resume has them; links are never followed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tuner import paths
from tuner.jobs import room
from tuner.jobs.resuming import why_not_resumable
from tuner.runs import checkpoints, locks
from tuner.runs.run import Run
from tuner.runs.status import ENDED, LIVE
from tuner.text.lookup import mark, tr
from tuner.tracking import open_runs
from tuner.tracking.adapters import list_adapters

CACHES = ("references", "fetched", "models")
KEEPS = ("best", "last")
_CHECKPOINT = re.compile(r"checkpoint-\d")


@dataclass(frozen=True)
class Item:
    """One thing that would go: `size` in bytes, `run` an id or empty, `warning` what is lost with it."""

    path: Path
    size: int
    what: str
    run: str = ""
    name: str = ""
    warning: str = ""


@dataclass(frozen=True)
class Plan:
    """What would go, or went; `stays` says in sentences what does not, and why. `keep` is what was asked to stay."""

    items: tuple[Item, ...] = ()
    stays: tuple[str, ...] = ()
    keep: frozenset[str] | None = None

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)


def plan(
    keep: Collection[str] | None = None, caches: bool = False, runs: Collection[str] | None = None
) -> Plan:
    """What would go: of ended runs, all or these, the checkpoints but those to `keep` ("best", "last"; none of them kept
    for an empty one, all for None), and caches if asked for. Removes nothing.

    Raises TrackerError while the tracker is away: nobody knows then which adapters are registered.
    """
    items: list[Item] = []
    stays: list[str] = []
    used = _used()
    found = _checkpoints(frozenset(keep), runs) if keep is not None else iter(())
    for one in (*found, *(_caches() if caches else ())):
        if isinstance(one, str):
            stays.append(one)
        elif by := used.get(one.path):
            stays.append(tr("{name} stays: {by}.", name=one.path.name, by=by))
        else:
            items.append(one)
    return Plan(tuple(items), tuple(stays), None if keep is None else frozenset(keep))


# --- what may go ---------------------------------------------------------------------------------------------------


def _checkpoints(keep: frozenset[str], runs: Collection[str] | None) -> Iterator[Item | str]:
    """Things to remove, and sentences on what stays."""
    with suppress(FileNotFoundError), os.scandir(paths.runs()) as entries:
        ids = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
        for id in ids:
            if runs is None or id in runs:
                yield from _of_run(Run(id), keep)


def _of_run(run: Run, keep: frozenset[str]) -> Iterator[Item | str]:
    found = [c for c in checkpoints.within(run.checkpoints) if not c.is_symlink()]
    if not found or not run.exists:
        return
    status, name = run.status(), run.name
    if run.checkpoints.is_symlink():
        yield tr(
            "{name}: its checkpoints lie in {resolve}, a folder of your own, and stay.",
            name=name,
            resolve=run.checkpoints.resolve(),
        )
        return
    if status.state not in ENDED:
        yield tr("{name} is {state}; its checkpoints stay.", name=name, state=status.state)
        return
    kept = checkpoints.to_keep(run, keep)
    for path, why in kept.items():
        yield tr("{name}: {name_2} stays, {why}.", name=name, name_2=path.name, why=why)
    warnings = _warnings(run)
    for path in found:
        if path not in kept:
            whole = checkpoints.valid(path, deep=False) is None
            what = mark("checkpoint") if whole else mark("checkpoint that is not whole")
            yield Item(path, room.size_of(path), what, run.id, name, warnings.get(path, ""))


def _warnings(run: Run) -> dict[Path, str]:
    """What is lost with a run's last and best checkpoint."""
    found = {
        path: tr("it is {why}", why=why) for path, why in checkpoints.to_keep(run, ("best", "last")).items()
    }
    last = next(iter(checkpoints.to_keep(run, ("last",))), None)
    if last is not None and why_not_resumable(run) is None:
        found[last] = tr("it is the last: this run could then not be resumed any more")
    return found


def _caches() -> Iterator[Item | str]:
    if said := _at_work():
        yield tr("Caches stay: {said}.", said=said)
        return
    for place in CACHES:
        folder = paths.mlruns() / place
        if room.is_own(folder) and folder.is_dir():
            for path in sorted(p for p in folder.iterdir() if not p.is_symlink()):
                yield Item(path, room.size_of(path), room.PLACES[place])
    for path in room.tokenized():
        yield Item(path, room.size_of(path), mark("tokenised rows"))


def _at_work() -> str:
    """Which run may be using a cache now; empty for none."""
    live = (run for run in map(Run, open_runs.ids()) if run.exists and run.status().state in LIVE)
    return next((tr("{name} is running", name=run.name) for run in live), "")


def _used() -> dict[Path, str]:
    """Paths that may not go, nor what holds them, and who needs them: runs that have not ended, registered adapters."""
    named: dict[Path, str] = {}
    for run in map(Run, open_runs.ids()):
        status = run.status()
        if run.exists and status.state not in ENDED:
            texts = [*_texts(run.values()), status.resume_from]
            named |= {
                path: tr("{name} begins with it", name=run.name) for text in texts for path in _paths(text)
            }
    for run in _of_checkpoints():
        named |= {
            path: tr("{name} needs it to be resumed", name=run.name)
            for text in _texts(run.values())
            for path in _paths(text)
        }
    for name, base in _bases():
        named |= dict.fromkeys(_paths(base), tr("the adapter in {name} needs it", name=name))
    adapters = list_adapters()
    for text, row in {row.base: row for row in adapters}.items():
        named |= dict.fromkeys(
            _paths(text), tr("the adapter {name} {version} needs it", name=row.name, version=row.version)
        )
    named |= {
        row.folder: tr("the adapter {name} {version} lies in it", name=row.name, version=row.version)
        for row in adapters
        if row.folder
    }
    return {above: why for path, why in named.items() for above in (path, *path.parents)}


def _bases() -> Iterator[tuple[str, str]]:
    """What runs left behind that fits a model which was merged or converted here: the run's name, and that model."""
    if not paths.models().is_dir():
        return
    for file in paths.runs().glob("*/output/adapter_config.json"):
        with suppress(OSError, ValueError, AttributeError):
            base = str(json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
            if Path(base).is_relative_to(paths.models()):
                yield Run(file.parents[1].name).name, base


def _of_checkpoints() -> Iterator[Run]:
    """The ended runs that did not finish, so that they may be resumed, and name some run's checkpoint in their config."""
    with suppress(FileNotFoundError):
        for folder in paths.runs().iterdir():
            with suppress(OSError, ValueError):
                run, text = Run(folder.name), (folder / "config.yaml").read_text(encoding="utf-8")
                if _CHECKPOINT.search(text) and run.status().state in ENDED - {"finished"}:
                    yield run


def _texts(values: dict[str, Any]) -> Iterator[str]:
    for value in values.values():
        for one in value if isinstance(value, list) else [value]:
            yield from str(one).split(",")


def _paths(text: str) -> Iterator[Path]:
    """The path that a text is, if there is something."""
    with suppress(OSError, ValueError):
        path = paths.home() / Path(text.strip()).expanduser()
        if text.strip() and path.exists():
            yield path.resolve()


# --- doing it ------------------------------------------------------------------------------------------------------


def clean(wanted: Plan) -> Plan:
    """Remove what a plan lists, as far as it may still go; what went, and sentences on what did not.

    Raises TrackerError while the tracker is away, and nothing is removed.
    """
    used, gone, stays = _used(), list[Item](), list[str]()
    for id, group in groupby(wanted.items, key=lambda item: item.run):
        items = list(group)
        with _settled(id) if id else nullcontext(_at_work()) as why:
            allowed = _allowed(Run(id), wanted) if id and not why else None
            for item in items:
                said = why or used.get(item.path) or _why_not(item, allowed)
                if not said and (left := _remove(item)):
                    said = left
                stays.append(tr("{path} stays: {said}.", path=item.path, said=said)) if said else gone.append(
                    item
                )
    return replace(wanted, items=tuple(gone), stays=tuple(stays))


@contextmanager
def _settled(run_id: str) -> Iterator[str]:
    """Hold an ended run's lock for a block; why its files may not go, empty if they may."""
    run = Run(run_id)
    lock = locks.lock(run.lock_path) if run.exists else None
    if lock is None:
        yield tr("its run is running") if run.exists else tr("its run is gone")
        return
    try:
        state = run.status().state
        yield "" if state in ENDED else tr("its run is {state} again", state=state)
    finally:
        os.close(lock)


def _allowed(run: Run, wanted: Plan) -> dict[Path, str] | str:
    """The checkpoints to keep now, or why none may go: those that are kept are not what was written."""
    kept = checkpoints.to_keep(run, wanted.keep or ())
    if why_not_resumable(run) is None:
        for path in kept:
            if wrong := checkpoints.valid(path):
                return tr("what would be kept is damaged, {wrong}", wrong=wrong.rstrip(".。"))
    return kept


def _why_not(item: Item, kept: dict[Path, str] | str | None) -> str:
    """Why a thing may not go now; empty if it may. `kept` is None for a cache."""
    if isinstance(kept, str):
        return kept
    if not item.path.exists():
        return tr("it is gone already")
    if item.path.is_symlink() or not room.is_own(item.path):
        return tr("it lies outside the studio")
    if kept is None:
        of_cache = item.path.parent in [paths.mlruns() / place for place in CACHES]
        return "" if of_cache or item.path in room.tokenized() else tr("it is no cache")
    if item.path.parent != Run(item.run).checkpoints or checkpoints.step_of(item.path) < 0:
        return tr("it is no checkpoint of this run")
    return tr("it is {kept}", kept=kept[item.path]) if item.path in kept else ""


def _remove(item: Item) -> str:
    """Remove one thing; why it could not be, empty if it went."""
    try:
        if item.path.is_dir():
            # From here on a checkpoint does not count, whatever happens to the rest.
            (item.path / checkpoints.MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(item.path)
        else:
            item.path.unlink()
    except OSError as error:
        return f"{error.strerror or error}".lower()
    return ""
