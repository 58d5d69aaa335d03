"""Checkpoints: what a run can go on from, and what makes one trustworthy. No torch: pages and the queue read them too.

A checkpoint counts only when its manifest is there, and the manifest is written last: every file is synced to disk and
hashed first. A process that dies while it saves leaves a folder without a manifest, which nobody goes on from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.config.run_config import RunConfig
from tuner.runs.files import replacing
from tuner.runs.run import Run, series
from tuner.text.lookup import joined, tr

MANIFEST = "manifest.json"
WEIGHTS = ("adapter_model*", "model*.safetensors", "pytorch_model*.bin", "value_head.safetensors")


def sha256(path: Path) -> str:
    """The hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, run: Run, **facts: int) -> None:
    """Sync every file of a fresh checkpoint and write its manifest, which makes it count; with `facts` in it."""
    files = {}
    for path in sorted(
        p for p in folder.rglob("*") if p.is_file() and not p.name.lstrip(".").startswith(MANIFEST)
    ):
        _sync(path)
        files[path.relative_to(folder).as_posix()] = {"sha256": sha256(path), "size": path.stat().st_size}
    text = json.dumps({"run": run.id, "step": step_of(folder), **facts, "files": files}, indent=1)
    with replacing(folder / MANIFEST) as fresh:
        fresh.write_text(text, encoding="utf-8")
        _sync(fresh)
    _sync(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def manifest(checkpoint: Path) -> dict[str, Any] | None:
    """What the manifest says; None where there is none or it is torn."""
    with suppress(OSError, json.JSONDecodeError):
        said = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return said if isinstance(said, dict) and isinstance(said.get("files"), dict) else None
    return None


def valid(checkpoint: Path, deep: bool = True) -> str | None:
    """None if every file is there as it was written, else one sentence. `deep` reads the bytes, not only the sizes."""
    said = manifest(checkpoint)
    if said is None:
        return tr("{checkpoint} was not completely saved.", checkpoint=checkpoint)
    for name, row in said["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return tr("{checkpoint} lacks its file {name}.", checkpoint=checkpoint, name=name)
        if path.stat().st_size != row["size"] or (deep and sha256(path) != row["sha256"]):
            return tr("{path} was changed after it was saved.", path=path)
    return None


def step_of(checkpoint: Path) -> int:
    """The optimizer step a checkpoint-N folder was saved at; -1 for another name."""
    found = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(found.group(1)) if found else -1


def within(folder: Path) -> list[Path]:
    """The checkpoint-N folders in a folder, oldest first, complete or not."""
    with suppress(OSError):
        return sorted((p for p in folder.iterdir() if step_of(p) >= 0 and p.is_dir()), key=step_of)
    return []


def of(run: Run) -> list[Path]:
    """The complete checkpoints that belong to a run, oldest first: its own and the one it went on from."""
    mine = {run.id, run.status().continues or run.id}
    return [c for c in within(run.checkpoints) if (manifest(c) or {}).get("run") in mine]


def to_go_on_from(run: Run) -> bool:
    """Whether a run that ended early can go on: from a checkpoint, or from the beginning where it took no step.

    Cheap enough for a page: sizes are checked, not hashes.
    """
    return not run.status().step or any(valid(c, deep=False) is None for c in of(run))


def latest(run: Run) -> Path | None:
    """The newest checkpoint of a run whose files are all as they were written."""
    return next((c for c in reversed(of(run)) if valid(c) is None), None)


def best(run: Run) -> tuple[Path, str] | None:
    """The checkpoint that measured best, and by what; None where nothing tells.

    What the trainer noted counts first; else metric_for_best_model, or eval_loss, as it was measured at each one's step.
    """
    own = {c.name: c for c in of(run)}
    values = run.values()
    asked = str(values.get("metric_for_best_model") or "loss")
    metric = asked if asked.startswith("eval_") else f"eval_{asked}"
    if own and (noted := own.get(_noted_best(list(own.values())[-1]))):
        return noted, metric
    steps, measured = series(run.metrics()[0], metric)
    at = {step: value for step, value in zip(steps, measured, strict=True) if value == value}
    found = [(at[step_of(c)], c) for c in own.values() if step_of(c) in at]
    higher = values.get("greater_is_better")
    higher = not metric.endswith("loss") if higher is None else higher
    ranked = sorted(found, key=lambda one: one[0], reverse=bool(higher))
    return (ranked[0][1], metric) if ranked else None


def _noted_best(checkpoint: Path) -> str:
    """The name of the best checkpoint by the time this one was saved; empty where the trainer did not look for it."""
    with suppress(OSError, ValueError):
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return Path(str(state.get("best_model_checkpoint") or "")).name
    return ""


def to_keep(run: Run, keep: Collection[str]) -> dict[Path, str]:
    """Of a run's whole checkpoints those that are the "best" or the "last", as far as `keep` has these words, and why.

    Where nothing tells the best one, "best" is the last. Cheap enough for a page: sizes are checked, not hashes.
    """
    whole = [c for c in of(run) if valid(c, deep=False) is None]
    if not whole:
        return {}
    found = best(run)
    told = found is not None and found[0] in whole
    kept = {found[0]: tr("the best by {found}", found=found[1])} if found and told and "best" in keep else {}
    if "last" in keep or keep and not kept:
        last = (
            tr("the last")
            if told or "best" not in keep
            else tr("the last, and there is no measure of the best")
        )
        kept[whole[-1]] = joined([*filter(None, (kept.get(whole[-1]), last))])
    return kept


def unfinished(folder: Path) -> set[Path]:
    """The checkpoint-N folders in a folder that have no manifest: half written, or of another tool."""
    return {path for path in within(folder) if not (path / MANIFEST).exists()}


def discard(folder: Path, but: Collection[Path] = ()) -> None:
    """Delete the unfinished checkpoints in a folder, `but` not these: half of one takes room and looks like one."""
    for path in unfinished(folder) - set(but):
        shutil.rmtree(path, ignore_errors=True)


def rotate(run: Run, limit: int | None, keep: Path | None = None) -> None:
    """Delete the oldest checkpoints of a run beyond `limit`, never the newest and never `keep` (the best one)."""
    mine = [c for c in of(run) if (manifest(c) or {}).get("run") == run.id]
    for old in mine[: -limit if limit else None] if limit else []:
        if keep is None or old.resolve() != keep.resolve():
            (old / MANIFEST).unlink()  # from here on it does not count, whatever happens to the rest
            shutil.rmtree(old, ignore_errors=True)


def output_of(run: Run, config: RunConfig) -> Path:
    """Where a run writes what it made: output_dir, or the run's own folder."""
    named = getattr(config, "output_dir", None)
    return (paths.home() / named).resolve() if named else run.folder / "output"


def start_of(run: Run, config: Config) -> Path | None:
    """The checkpoint a run begins from, None for a fresh start.

    The run's own newest one if it ran before; else what resume_from_checkpoint names; else, as in LLaMA-Factory, the
    last one in output_dir unless overwrite_output_dir says otherwise. Raises ConfigError with one sentence.
    """
    asked = run.status().resume_from or None
    if asked:
        return _sound(Path(str(asked)), "resume_from_checkpoint")
    if own := latest(run):
        return own
    output = output_of(run, config)
    named = str(config.resume_from_checkpoint or "").strip()
    if named.lower() not in ("", "true", "false"):
        return _sound((paths.home() / named).resolve(), "resume_from_checkpoint")
    if not config.output_dir or not config.do_train or named.lower() == "false":
        return None
    if config.overwrite_output_dir and named.lower() != "true":
        return None
    return _last_in(output, named.lower() == "true")


def _last_in(output: Path, wanted: bool) -> Path | None:
    """The newest sound checkpoint of an output folder; a sentence where the folder cannot be written to as it is."""
    found = next((c for c in reversed(within(output)) if _why_not(c) is None), None)
    if found:
        return found
    if wanted:
        raise _refused(
            "resume_from_checkpoint",
            tr("{output} holds no checkpoint to continue from; leave it out.", output=output),
        )
    if any(any(output.glob(pattern)) for pattern in WEIGHTS):
        raise _refused(
            "output_dir",
            tr(
                "--output_dir {output} already holds a model; choose another folder or set --overwrite_output_dir True.",
                output=output,
            ),
            {"overwrite_output_dir": True},
        )
    return None


def _why_not(checkpoint: Path) -> str | None:
    """Like `valid`, but a checkpoint of another tool, which has no manifest at all, passes when its state is there."""
    if (checkpoint / MANIFEST).exists() or not (checkpoint / "trainer_state.json").is_file():
        return valid(checkpoint)
    return (
        None
        if any(any(checkpoint.glob(p)) for p in WEIGHTS)
        else tr("{checkpoint} holds no weights.", checkpoint=checkpoint)
    )


def _sound(checkpoint: Path, knob: str) -> Path:
    if not checkpoint.is_dir():
        raise _refused(
            knob,
            tr(
                "--{knob} {checkpoint} does not exist; name a checkpoint-N folder.",
                knob=knob,
                checkpoint=checkpoint,
            ),
        )
    if reason := _why_not(checkpoint):
        raise _refused(
            knob, tr("Cannot continue from it: {reason} Choose an older checkpoint.", reason=reason)
        )
    return checkpoint


def _refused(knob: str, sentence: str, mend: dict[str, Any] | None = None) -> ConfigError:
    return ConfigError([Problem(knob, sentence, mend or {})])
