"""The process in which one run lives: holds its lock, calls its stage, settles how it ended.

`python -m tuner.worker <run_id>` from the queue, `run_here` for `tuner train`: the same code.
"""

from __future__ import annotations

import gc
import importlib
import io
import logging as python_logging
import os
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from tuner import hardware, paths, private, process
from tuner.config import settings
from tuner.config.config import Config
from tuner.config.inference import InferenceConfig
from tuner.config.run_config import RunConfig
from tuner.engine import library_imports
from tuner.engine.live import LiveRun
from tuner.jobs import planning, ranks
from tuner.jobs.live import Live, Outcome, StoppedError, gone
from tuner.plan import preflight
from tuner.redact import redact
from tuner.runs import checkpoints, locks, reasons, worker_lock
from tuner.runs.metrics import SystemMetrics
from tuner.runs.run import Run, SilentRun
from tuner.runs.status import State
from tuner.runs.weights import check_finite
from tuner.text.message import message, plain
from tuner.tracking.mirror_process import MirrorProcess
from tuner.tracking.outcome import conclude
from tuner.tracking.registration import ask_to_register
from tuner.tracking.store import TrackerError

EXIT = {"finished": 0, "stopped": 0, "failed": 1}


def main(run_id: str) -> int:
    """Live one run. Returns the exit code: 0 finished or stopped, 1 failed, 2 refused."""
    process.begin()
    settings.go_offline()
    if number := ranks.rank():
        return live_as_rank(SilentRun(run_id), number)
    run = Run(run_id)
    # no more than it takes, however this was started
    os.environ["CUDA_VISIBLE_DEVICES"] = hardware.own_gpus(run.status().devices)
    if not run.exists:
        print(f"There is no run {run_id}; `tuner runs` lists them.", file=sys.stderr)
        return 2
    try:
        return run_here(run)
    except locks.LockHeldError as busy:
        print(busy, file=sys.stderr)
        return 2
    except OSError as error:  # there is nowhere to write, not even why
        print(reasons.refused_by_system(error), file=sys.stderr)
        return 2


def run_here(run: Run) -> int:
    """Live a run in this process, its output in log.txt too. Raises locks.LockHeldError when another worker has it."""
    lock = worker_lock.hold(run)
    try:
        with logging_to(run), MirrorProcess(run) as mirror:
            return _live(run, mirror)
    finally:
        os.close(lock)


def _live(run: Run, mirror: MirrorProcess) -> int:
    run.update(
        state="preparing",
        started=time.time(),
        began=time.monotonic(),
        pid=os.getpid(),
        boot_id=hardware.boot_id(),
        ended=0.0,
        exit_code=None,
        **reasons.Reason().changes(),
    )
    result = Outcome()
    try:
        config = run.config()
        show_token(config)
        live = LiveRun(run, config) if isinstance(config, Config) else Live(run)
        with live.listening(), measuring(live):
            result = _train(live, mirror) if isinstance(live, LiveRun) else _work(config, live, mirror)
        state, reason = _ended(live, result)
    except StoppedError:
        state, reason = _ended(live, Outcome(stopped=True))
    except ranks.RankDiedError as error:
        traceback.print_exc(file=sys.stderr)
        state, reason = "failed", error.reason
    except Exception as error:  # whatever it was, the run must end with a reason
        if not run.exists:  # but for one whose folder was deleted: there is nothing to write into
            run.remove_remains()
            raise gone(run) from error
        traceback.print_exc(file=sys.stderr)
        state, reason = "failed", reasons.from_exception(error, run.values())
    run.forget_requests()
    planning.record(run, seconds=run.status().worked_now())
    run.update(phase="closing", **reason.changes())  # decided: whoever finds this process dead reads it here
    conclude(
        run,
        state,
        reason.cause,
        output=result.weights,
        files=result.files,
        phase="",
        remedies=reason.remedies,
        exit_code=EXIT[state],
    )
    mirror.settle()
    print(f"{run.id} {state}" + (f": {reason.sentence}" if reason.sentence else ""), flush=True)
    return EXIT[state]


@contextmanager
def measuring(live: Live) -> Iterator[None]:
    """Sample the machine's load as long as the run lives."""
    system = SystemMetrics(live.run, live.log, others=lambda: live.pids)
    try:
        yield
    finally:
        system.close()
        live.log.close()


@contextmanager
def only_whole_checkpoints(live: LiveRun) -> Iterator[None]:
    """Leave no half of a checkpoint: not one that this worker could not finish, nor one that an earlier one died over.

    A folder that the person named may hold another tool's checkpoints, which have no manifest either: those stay.
    """
    folder, theirs = live.run.checkpoints, set[Path]()
    if live.config.output_dir:
        folder, theirs = live.output, checkpoints.unfinished(live.output)
    checkpoints.discard(folder, theirs)
    try:
        yield
    finally:
        checkpoints.discard(folder, theirs)


def work_of(config: RunConfig) -> Callable[[RunConfig, Live], Outcome]:
    """The function that does what a run of this kind is for."""
    module, name = config.kind.entry.split(":")
    found: Callable[[RunConfig, Live], Outcome] = getattr(importlib.import_module(module), name)
    return found


def _work(config: RunConfig, live: Live, mirror: MirrorProcess) -> Outcome:
    """What a kind that does not train is for. An adapter that it brought is registered."""
    with _libraries_for(config):
        with live.phase("loading_libraries"):
            only_tensors()
            library_imports.begin()
            quieten()
            work = work_of(config)
        result = work(config, live)
    if result.weights and result.adapter:
        _register(live, mirror, result, result.weights, config.called)
    return result


def _libraries_for(config: RunConfig) -> AbstractContextManager[None]:
    """Who waits for a model to answer does not wait for a library that it does not need."""
    if isinstance(config, InferenceConfig) and config.kind.family == "serve":
        return library_imports.without_bitsandbytes(config.loading())
    return nullcontext()


def _train(live: LiveRun, mirror: MirrorProcess) -> Outcome:
    """Train, then register what came out: the last step, so that what is registered is whole."""
    for said in preflight.notes(live.config, at_work=True):
        live.note(plain(said))
    with only_whole_checkpoints(live):
        with ranks.Ranks(live.run, live.config.processes) as others:
            live.pids = others.pids
            try:
                result = _learn(live, others.listener)
            except StoppedError:
                raise
            except Exception as error:
                raise others.blamed(error) from error
        if result.weights and not result.stopped:
            _keep(live, mirror, result, result.weights)
        return result


def _learn(live: LiveRun, listener: socket.socket | None = None) -> Outcome:
    """What every process of a run does: load the libraries, meet the others, train."""
    config = live.config
    with library_imports.without_bitsandbytes(config):
        with live.phase("loading_libraries"):
            only_tensors(config.deepspeed)
            library_imports.begin()
            quieten(silent=live.quiet.is_set())
            train = work_of(config)
            from tuner.engine import group
            from tuner.engine.trainer import on_gpu

            if config.sharded:
                from tuner.engine.pieces import only_descriptions

                only_descriptions()
        shared = private.shared(live.output) if config.output_dir else nullcontext()
        with shared, group.joined(config.processes, on_gpu(config), config.ddp_timeout, listener):
            return train(config, live)


def live_as_rank(run: SilentRun, number: int) -> int:
    """Be another process of a run than its first, which alone says anything. Returns the exit code."""
    ranks.die_with_the_first()
    try:
        config = run.config()
        if isinstance(config, Config):
            _learn(LiveRun(run, config))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        ranks.leave_word(run, number, reasons.from_exception(error, run.values()))
        return 1
    return 0


def show_token(config: RunConfig) -> None:
    """Let this process ask the hubs as the person whose tokens the config has: the libraries that fetch data sets and
    catalogs, and those that upload, take them from the environment."""
    for knob, name in (("hf_hub_token", "HF_TOKEN"), ("ms_hub_token", "MODELSCOPE_API_TOKEN")):
        if token := config.secrets().get(knob):
            os.environ[name] = token


def lineage(config: Config) -> str:
    """What an adapter is called: model, data and stage, so that the next run of the same becomes its next version."""
    model = Path(str(config.model_name_or_path)).name
    return paths.slug("-".join([model, *config.dataset[:2], config.stage]), 80)


def only_tensors(deepspeed: object = None) -> None:
    """Let torch open no pickle that holds more than tensors, whatever a library asks of it: a pickle can run code.

    DeepSpeed's own checkpoints are of that kind, so a run that names its file is left alone.
    """
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    if not deepspeed:
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def quieten(silent: bool = False) -> None:
    """Keep progress bars and libraries' notes to their own developers out of a log that people read; in a `silent`
    process all but errors, which the first one says too."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging

    logging.disable_progress_bar()
    if silent:
        logging.set_verbosity_error()
        python_logging.getLogger("tuner").setLevel(python_logging.ERROR)


def _keep(live: LiveRun, mirror: MirrorProcess, result: Outcome, folder: Path) -> None:
    """Check that what came out is made of finite numbers; register an adapter."""
    if not result.adapter:
        for path in folder.glob("*.safetensors"):
            check_finite(path)
        return
    _register(live, mirror, result, folder, lineage(live.config))


def _register(live: Live, mirror: MirrorProcess, result: Outcome, folder: Path, name: str) -> None:
    """Make an adapter the next version of a name; where MLflow is away, later."""
    with live.phase("registering"):
        try:
            ask_to_register(live.run, folder, result.base, name)
            mirror.register()
        except TrackerError as away:
            live.note(message("note.unregistered", folder=str(folder), detail=str(away)))


def _ended(live: Live, result: Outcome) -> tuple[State, reasons.Reason]:
    if not result.stopped:
        return "finished", reasons.Reason()
    if result.cause:
        return "stopped", reasons.Reason(result.cause)
    kept = live.run.status().checkpoint_step
    if live.asked == "cancel":
        return "stopped", reasons.Reason(message("cancelled"))
    if kept is None:
        return "stopped", reasons.Reason(message("stopped.unsaved"))
    return "stopped", reasons.Reason(message("stopped", step=kept), [reasons.RESUME])


@contextmanager
def logging_to(run: Run) -> Iterator[None]:
    """Everything printed goes to the run's log as well, unless that is where it goes already."""
    log, before = run.log_path.open("a", encoding="utf-8", buffering=1), (sys.stdout, sys.stderr)
    if _same_file(sys.stdout, log):
        sys.stdout, sys.stderr = TeeStream(before[0]), TeeStream(before[1])
    else:
        sys.stdout, sys.stderr = TeeStream(before[0], log), TeeStream(log)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        with suppress(OSError):  # what a full disk did not take
            log.close()


def _same_file(one: Any, other: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))
    except (OSError, ValueError, AttributeError):
        return False


class TeeStream(io.TextIOBase):
    """A text stream that writes to several, as far as they take it; closing it closes none of them.

    Secrets are masked on the way. A line that a full disk or a closed terminal does not take is lost; training goes on.
    """

    def __init__(self, *streams: IO[str]):
        self._streams = streams

    def write(self, text: str) -> int:
        masked = redact(text)
        for stream in self._streams:
            with suppress(OSError):
                stream.write(masked)
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            with suppress(OSError):
                stream.flush()

    def fileno(self) -> int:
        return self._streams[0].fileno()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tuner.worker RUN_ID")
    ended = main(sys.argv[1])
    gc.freeze()  # the interpreter would look through all of it for garbage once more
    sys.exit(ended)
