"""Why a run ended, in words: from an exception or from how its process died to a sentence and what to do about it.

No torch here: exceptions are known by name and text, so that the worker, the supervisor and the pages share this table.
"""

from __future__ import annotations

import errno
import re
import signal
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tuner.config.knobs import ConfigError
from tuner.redact import redact
from tuner.tracking.disk import FULL

Remedy = dict[str, Any]
"""`label` for a button; `action` "clone" with the knobs to change in `values`, or "resume" with none."""

RESUME: Remedy = {"label": "Resume from the last checkpoint", "action": "resume", "values": {}}


@dataclass(frozen=True)
class Reason:
    """A code for programs, a sentence for people, and remedies for buttons."""

    code: str
    sentence: str
    remedies: list[Remedy] = field(default_factory=list)

    def changes(self) -> dict[str, Any]:
        """The fields of a run's status that say this."""
        return {"reason_code": self.code, "reason": self.sentence, "remedies": self.remedies}


Values = Mapping[str, Any]
UNSAFE = (
    "A file of the checkpoint or model holds more than numbers, which could run code when it is opened; it was not opened. "
    "Go on from a checkpoint that you trust, or start afresh."
)


# --- remedies ------------------------------------------------------------------------------------------------------


def smaller(values: Values) -> list[Remedy]:
    """Ways to need less memory, the one that changes least first."""
    found: list[Remedy] = []
    batch = int(values.get("per_device_train_batch_size") or 1)
    accumulation = int(values.get("gradient_accumulation_steps") or 1)
    cutoff = int(values.get("cutoff_len") or 2048)
    if batch > 1:
        halved = {
            "per_device_train_batch_size": batch // 2,
            "gradient_accumulation_steps": -(-accumulation * batch // (batch // 2)),
        }
        found.append(_clone("Halve the batch, accumulate twice as often", halved))
    if values.get("disable_gradient_checkpointing"):
        found.append(_clone("Turn gradient checkpointing on", {"disable_gradient_checkpointing": False}))
    if cutoff > 64:
        found.append(_clone(f"Shorten the cutoff to {cutoff // 2} tokens", {"cutoff_len": cutoff // 2}))
    return found


def calmer(values: Values) -> list[Remedy]:
    """Ways to keep the loss finite."""
    rate = float(values.get("learning_rate") or 5e-5)
    found = [_clone(f"Learning rate {rate / 10:.0e}", {"learning_rate": rate / 10})]
    if values.get("fp16"):
        found.append(_clone("bf16 in place of fp16", {"fp16": False, "bf16": True}))
    return found


def _clone(label: str, values: dict[str, Any]) -> Remedy:
    return {"label": label, "action": "clone", "values": values}


# --- from an exception ---------------------------------------------------------------------------------------------


def out_of_memory(values: Values, where: str = "") -> Reason:
    batch, cutoff = values.get("per_device_train_batch_size"), values.get("cutoff_len")
    return Reason(
        "out_of_memory",
        f"Out of memory{where}: batch {batch} at up to {cutoff} tokens does not fit. "
        "Halve the batch and double accumulation, or shorten the cutoff.",
        smaller(values),
    )


def non_finite(values: Values, evidence: str = "") -> Reason:
    return Reason(
        "non_finite",
        f"The loss became NaN or infinite{_because(evidence)}. "
        "Nothing was registered; lower the learning rate and start again.",
        calmer(values),
    )


def disk_full(values: Values, evidence: str = "") -> Reason:
    return Reason(
        "disk_full",
        f"The disk is full{_because(evidence)}. "
        "The last complete checkpoint is kept; free some space, then resume.",
        [RESUME],
    )


def from_exception(error: BaseException, values: Values) -> Reason:
    """The reason an exception in a worker stands for; `values` are the run's knobs.

    The whole chain of causes is asked: libraries wrap the one that says it.
    """
    for link in _chain(error, hidden=True):
        if found := _known(link, values):
            return found
    chain = _chain(error)
    for link in chain:
        if isinstance(link, ImportError) and (found := _missing_library(link)):  # PackageNotFoundError, too
            return found
    first = next((link for link in reversed(chain) if _says_something(link)), error)
    return Reason("error", f"{type(first).__name__}{_said(first)} The log has the whole story.")


def _chain(error: BaseException, hidden: bool = False) -> list[BaseException]:
    """The error, then what caused it, then what caused that; with `hidden` also what a library raised away from."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ and not hidden else link.__context__)
    return chain


def _said(error: BaseException) -> str:
    """What an exception says, or where it was raised if it says nothing."""
    if str(error).strip():
        return f": {_line(error)}"
    frames = traceback.extract_tb(error.__traceback__)
    return f" in {frames[-1].name} ({frames[-1].filename}, line {frames[-1].lineno})." if frames else "."


_LOOKUPS = (LookupError, AttributeError, StopIteration, StopAsyncIteration, GeneratorExit)
"""How Python says that something is not there; whoever meets one and raises something else says what."""


def _says_something(error: BaseException) -> bool:
    return not isinstance(error, _LOOKUPS) and bool(str(error).strip())


def _known(error: BaseException, values: Values) -> Reason | None:
    if isinstance(error, ConfigError):
        knobs = {p.knob for p in error.problems}
        code = "data_error" if knobs & {"dataset", "eval_dataset", "dataset_dir"} else "refused"
        return Reason(code, str(error), [_clone("Mend it", dict(p.mend)) for p in error.problems if p.mend])
    module = type(error).__module__.partition(".")[0]
    if module in {"mlflow", "sqlalchemy", "alembic"}:
        return Reason(
            "tracker_down", f"MLflow could not be reached: {_line(error)} `tuner sync` sends what is missing."
        )
    if isinstance(error, OSError) and (found := _system(error, values)):
        return found
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return out_of_memory(values, " on the GPU" if module == "torch" else "")
    if type(error).__name__ == "UnpicklingError":
        return Reason("unsafe_file", UNSAFE, [])
    if isinstance(error, FloatingPointError) or type(error).__name__ in {"NonFinite", "NonFiniteLoss"}:
        return non_finite(values, str(error))
    return from_text(str(error), values)


def _missing_library(error: ImportError) -> Reason | None:
    """A library that is not installed, by the name that Python or the library that asks for it gives."""
    said = str(error)
    found = re.search(r"The '([\w.-]+)[^']*' distribution was not found", said)
    found = found or re.search(
        r"No (?:module named|package metadata was found for) '?([\w.-]+?)'?(?:$|[\s;,.]*$|\s)", said
    )
    if not found:
        found = re.search(r"pip install (?:-U |--upgrade )?[`'\"]?([\w.-]+)", said)
    if not found:
        return None
    name = found.group(1).partition(".")[0]
    sentence = f"The library {name} is not installed; run `pip install {name}`, then start again, or drop the knob that asks for it."
    return Reason("missing_library", sentence)


def _system(error: OSError, values: Values) -> Reason | None:
    named = str(error.filename) if error.filename else _line(error)
    if error.errno in FULL:
        return disk_full(values, ": ".join(filter(None, (error.strerror, error.filename))))
    if error.errno == errno.ENOMEM:
        return out_of_memory(values)
    if isinstance(error, FileNotFoundError):
        return Reason(
            "missing_file", f"{named} is missing; put it back or name another one, then resume.", [RESUME]
        )
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return Reason(
            "not_writable",
            f"{named} may not be read or written by this user; mend its permissions, then resume.",
            [RESUME],
        )
    return None


def refused_by_system(error: OSError) -> str:
    """One sentence on what the system refused, and what to do: for a process that cannot even begin."""
    if error.filename is None and isinstance(error, FileNotFoundError):
        return "The folder this was started in is gone; go to another one, or set TUNER_HOME."
    named, said = str(error.filename or "A file"), error.strerror or _line(error)
    if error.errno in FULL:
        return f"The disk is full ({named}); free some space and try again."
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"{named} may not be read or written by this user ({said}); mend that, or set TUNER_HOME to a folder of yours."
    if error.errno in {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}:
        return f"{named} is in the way ({said}); move it, or set TUNER_HOME to another folder."
    if isinstance(error, FileNotFoundError):
        return f"{named} is gone; put it back and try again."
    return f"{named}: {_clip(said.rstrip('.'))}."


_TEXTS: tuple[tuple[str, Callable[[Values, str], Reason]], ...] = (
    (
        r"CUDA out of memory|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED|NVML_SUCCESS == r INTERNAL ASSERT",
        lambda values, line: out_of_memory(values, " on the GPU"),
    ),
    (
        r"DefaultCPUAllocator: (not enough|can't allocate)|Cannot allocate memory|\bMemoryError\b",
        lambda values, line: out_of_memory(values),
    ),
    (r"No space left on device|Disk quota exceeded|File too large \(os error 27\)", disk_full),
    # torch.save does not say why it could not write; what it could not write is what did not fit.
    (
        r"basic_ios::clear: iostream error|PytorchStreamWriter failed[^.]*|unexpected pos \d+ vs \d+",
        disk_full,
    ),
    (
        r"(loss|gradient|weights?|grad_norm)\b.{0,40}\b(nan|inf|infinite|non-?finite|not finite)\b",
        non_finite,
    ),
)


def from_text(text: str, values: Values) -> Reason | None:
    """The reason a known message stands for: an exception's text, or the last lines of a log."""
    for pattern, make in _TEXTS:
        if found := re.search(pattern, text, re.IGNORECASE):
            return make(values, _clip(found.group(0)))
    return None


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = _clip(lines[0])
    return line if line.endswith((".", "!", "?")) else f"{line}."


def _clip(text: str, longest: int = 300) -> str:
    text = redact(text)  # before it is cut: of half a secret nobody can tell what it is
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _because(evidence: str) -> str:
    return f" ({_clip(evidence.strip().rstrip('.'))})" if evidence.strip() else ""


# --- from the way a process ended ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    """What is known of a dead worker. `exit_code` as subprocess has it (negative: a signal), None when unknown."""

    exit_code: int | None
    step: int = 0
    oom_killed: bool = False
    rebooted: bool = False
    began: bool = True
    log_tail: str = ""
    checkpoint: str = ""


def from_ending(ending: Ending, values: Values) -> Reason:
    """The reason for a worker that died without a word."""
    at = f" at step {ending.step}" if ending.step else " before its first step"
    kept = f" {ending.checkpoint} is kept." if ending.checkpoint else ""
    again = [RESUME] if ending.checkpoint or not ending.step else []
    if ending.rebooted:
        return Reason("rebooted", f"The machine was restarted while the run was{at}.{kept}", again)
    if ending.oom_killed:
        return Reason(
            "out_of_memory",
            f"The system killed the worker{at} because memory ran out (oom_kill in its control group).{kept} "
            "Halve the batch and double accumulation, or shorten the cutoff.",
            smaller(values) + again,
        )
    if ending.exit_code is None:
        what = "The worker died" if ending.began else "The worker died while it started,"
        return Reason(
            "killed", f"{what}{at} with nobody watching: killed from outside, most likely.{kept}", again
        )
    if ending.exit_code < 0:
        return Reason("killed", f"The worker was killed by {_signal(-ending.exit_code)}{at}.{kept}", again)
    if found := from_text(ending.log_tail[-4000:], values):
        return Reason(found.code, found.sentence, found.remedies)
    last = ending.log_tail.strip().splitlines()[-1:] or ["its log is empty"]
    sentence = f"The worker ended with exit code {ending.exit_code}{at} and without a word: {_clip(last[0])}"
    return Reason("error", sentence + kept, again)


def _signal(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def stalled(idle: float, usual: float | None, stopped: bool) -> str:
    """What a page says of a run that makes no progress. Seconds since the last step, and the usual time of one."""
    pace = f"; a step usually takes {usual:.1f} s" if usual else ""
    state = " Its process is suspended (SIGSTOP)." if stopped else ""
    return f"No progress for {idle:.0f} s{pace}.{state} Look at the log; Stop ends it and keeps the last checkpoint."
