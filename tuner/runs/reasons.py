"""Why a run ended, in words: from an exception or from how its process died to a sentence and what to do about it.

No torch here: exceptions are known by name and text, so that the worker, the supervisor and the pages share this table.
"""

from __future__ import annotations

import errno
import re
import signal
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tuner.config.knobs import ConfigError
from tuner.redact import redact
from tuner.runs.files import FULL
from tuner.text.lookup import tr
from tuner.text.message import Message, message, render

Remedy = dict[str, Any]
"""`code` of the button's text; `action` "clone" with the knobs to change in `values`, or "resume" with none."""

RESUME: Remedy = {"code": "resume", "action": "resume", "values": {}}


@dataclass(frozen=True)
class Reason:
    """Why a run ended, and remedies for buttons. The message's code up to its first dot is what programs go by."""

    cause: Message = field(default_factory=Message)
    remedies: list[Remedy] = field(default_factory=list)

    def changes(self) -> dict[str, Any]:
        """The fields of a run's status that say this."""
        return {"cause": self.cause, "remedies": self.remedies}

    @property
    def code(self) -> str:
        return self.cause.code.partition(".")[0]

    @property
    def sentence(self) -> str:
        return render(self.cause)


Values = Mapping[str, Any]


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
        found.append(_clone("halve_batch", halved))
    if values.get("disable_gradient_checkpointing"):
        found.append(_clone("checkpointing", {"disable_gradient_checkpointing": False}))
    if cutoff > 64:
        found.append(_clone("shorten", {"cutoff_len": cutoff // 2}))
    return found


def calmer(values: Values) -> list[Remedy]:
    """Ways to keep the loss finite."""
    rate = float(values.get("learning_rate") or 5e-5)
    found = [_clone("learning_rate", {"learning_rate": rate / 10})]
    if values.get("fp16"):
        found.append(_clone("bf16", {"fp16": False, "bf16": True}))
    return found


def label(remedy: Remedy) -> str:
    """The text of a remedy's button; older studios wrote it down."""
    code = remedy.get("code")
    return render(message(f"remedy.{code}", **remedy["values"])) if code else str(remedy.get("label", ""))


def _clone(code: str, values: dict[str, Any]) -> Remedy:
    return {"code": code, "action": "clone", "values": values}


# --- from an exception ---------------------------------------------------------------------------------------------


def out_of_memory(values: Values, where: str = "") -> Reason:
    """`where` is the memory that ran out: GPU, empty for the machine's."""
    batch, cutoff = values.get("per_device_train_batch_size"), values.get("cutoff_len")
    return Reason(message("out_of_memory", where=where, batch=batch, cutoff=cutoff), smaller(values))


def non_finite(values: Values, evidence: str = "") -> Reason:
    return Reason(message("non_finite", evidence=_evidence(evidence)), calmer(values))


def disk_full(values: Values, evidence: str = "") -> Reason:
    return Reason(message("disk_full", evidence=_evidence(evidence)), [RESUME])


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
    return Reason(_told(first))


def _chain(error: BaseException, hidden: bool = False) -> list[BaseException]:
    """The error, then what caused it, then what caused that; with `hidden` also what a library raised away from."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ and not hidden else link.__context__)
    return chain


def _told(error: BaseException) -> Message:
    """What an exception says, or where it was raised if it says nothing."""
    kind = type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if str(error).strip() or not frames:
        return message("error", kind=kind, detail=_line(error) if str(error).strip() else "")
    at = frames[-1]
    return message("error.at", kind=kind, function=at.name, file=at.filename, line=at.lineno)


_LOOKUPS = (LookupError, AttributeError, StopIteration, StopAsyncIteration, GeneratorExit)
"""How Python says that something is not there; whoever meets one and raises something else says what."""


def _says_something(error: BaseException) -> bool:
    return not isinstance(error, _LOOKUPS) and bool(str(error).strip())


def _known(error: BaseException, values: Values) -> Reason | None:
    if isinstance(error, ConfigError):
        knobs = {p.knob for p in error.problems}
        code = "data_error" if knobs & {"dataset", "eval_dataset", "dataset_dir"} else "refused"
        told = Message(f"{code}.told", {"text": str(error)})
        return Reason(told, [_clone("fix", dict(p.mend)) for p in error.problems if p.mend])
    module = type(error).__module__.partition(".")[0]
    if module in {"mlflow", "sqlalchemy", "alembic"}:
        return Reason(message("tracker_down", detail=_line(error)))
    if isinstance(error, OSError) and (found := _system(error, values)):
        return found
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return out_of_memory(values, "GPU" if module == "torch" else "")
    if type(error).__name__ == "UnpicklingError":
        return Reason(message("unsafe_file"))
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
    return Reason(message("missing_library", name=name))


def _system(error: OSError, values: Values) -> Reason | None:
    named = str(error.filename) if error.filename else _line(error)
    if error.errno in FULL:
        return disk_full(values, ": ".join(filter(None, (error.strerror, error.filename))))
    if error.errno == errno.ENOMEM:
        return out_of_memory(values)
    if isinstance(error, FileNotFoundError):
        return Reason(message("missing_file", name=named), [RESUME])
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return Reason(message("not_writable", name=named), [RESUME])
    return None


def refused_by_system(error: OSError) -> str:
    """One sentence on what the system refused, and what to do: for a process that cannot even begin."""
    if error.filename is None and isinstance(error, FileNotFoundError):
        return tr("The folder this was started in is gone; go to another one, or set TUNER_HOME.")
    named, said = str(error.filename or "A file"), error.strerror or _line(error)
    if error.errno in FULL:
        return tr("The disk is full ({named}); free some space and try again.", named=named)
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return tr(
            "{named} may not be read or written by this user ({said}); fix that, or set TUNER_HOME to a folder of yours.",
            named=named,
            said=said,
        )
    if error.errno in {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}:
        return tr(
            "{named} is in the way ({said}); move it, or set TUNER_HOME to another folder.",
            named=named,
            said=said,
        )
    if isinstance(error, FileNotFoundError):
        return tr("{named} is gone; put it back and try again.", named=named)
    return f"{named}: {_clip(said.rstrip('.'))}."


_TEXTS: tuple[tuple[str, Callable[[Values, str], Reason]], ...] = (
    (
        r"CUDA out of memory|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED|NVML_SUCCESS == r INTERNAL ASSERT",
        lambda values, line: out_of_memory(values, "GPU"),
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


def _evidence(text: str) -> str:
    return _clip(text.strip().rstrip("."))


# --- from the way a process ended ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExitInfo:
    """What is known of a dead worker. `exit_code` as subprocess has it (negative: a signal), None when unknown."""

    exit_code: int | None
    step: int = 0
    oom_killed: bool = False
    rebooted: bool = False
    began: bool = True
    log_tail: str = ""
    checkpoint: str = ""
    lost: Message | None = None


def from_exit(ending: ExitInfo, values: Values) -> Reason:
    """The reason for a worker that died without a word."""
    known = {"step": ending.step, "checkpoint": ending.checkpoint}
    again = [RESUME] if ending.checkpoint or not ending.step else []
    if ending.rebooted:
        return Reason(message("rebooted", **known), again)
    if ending.lost:
        return Reason(message("node_lost", why=ending.lost, **known), again)
    if ending.oom_killed:
        return Reason(message("out_of_memory.killed", **known), smaller(values) + again)
    if ending.exit_code is None:
        return Reason(message("killed.unseen" if ending.began else "killed.starting", **known), again)
    if ending.exit_code < 0:
        return Reason(message("killed", signal=_signal(-ending.exit_code), **known), again)
    if found := from_text(ending.log_tail[-4000:], values):
        return found
    last = ending.log_tail.strip().splitlines()[-1:]
    line = _clip(last[0]) if last else ""
    return Reason(message("error.exit", exit_code=ending.exit_code, line=line, **known), again)


def _signal(number: int) -> Message:
    name = ""
    with suppress(ValueError):  # real-time signals have none
        name = signal.Signals(number).name
    return message("signal", number=number, name=name)


def stalled(idle: float, usual: float | None, stopped: bool) -> Message:
    """What a page says of a run that makes no progress. Seconds since the last step, and the usual time of one."""
    return message("stalled.suspended" if stopped else "stalled", idle=idle, usual=usual or 0)
