"""Where MLflow keeps the runs: a SQLite file in mlruns/, or whatever MLFLOW_TRACKING_URI names.

MLflow is imported inside functions only: a page that lists runs must not wait two seconds for it. A new database is
made from a schema kept as text, because MLflow's own way there (some sixty migrations) takes up to ten seconds.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import platform
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from tuner import paths
from tuner.redact import redact
from tuner.text.lookup import mark, tr

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "tuner"
SHIPPED_SCHEMA = Path(__file__).with_name("schema.sql")
_OPENING = threading.RLock()
_clients: dict[str, tuple[Any, int]] = {}
_experiments: dict[str, str] = {}
_inside: list[str] = []  # who needs MLflow's default store now, see as_default


class TrackerError(Exception):
    """MLflow's store cannot be used now; the text is one sentence that says why and what to do."""


# --- where it is


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the SQLite file in the studio's mlruns folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{paths.mlruns() / 'mlflow.db'}"


def shown_uri() -> str:
    """Where the tracker is, for people: without the password that its URI may hold."""
    return redact(tracking_uri())


def database() -> Path | None:
    """The SQLite file behind the tracker; None where the tracker is something else."""
    uri = tracking_uri()
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").split("?")[0])).absolute()


def page_of(run_id: str) -> str | None:
    """Where the tracking server's own pages show a run of this studio; None where the tracker is a file, or away."""
    if not tracking_uri().startswith(("http://", "https://")):
        return None
    with contextlib.suppress(TrackerError), explained():
        experiment = experiment_id(open_store(create=False))
        wanted = quote(f"tags.`tuner.run` = '{run_id}'")
        return f"{shown_uri().rstrip('/')}/#/experiments/{experiment}/runs?searchFilter={wanted}"
    return None


def artifacts() -> Path:
    """Where artifacts are kept beside the SQLite file, a folder a run."""
    return paths.mlruns() / "artifacts"


def here() -> str:
    """This studio on this machine: which of a shared tracker's runs are ours to settle."""
    return f"{platform.node()}:{paths.home()}"


# --- opening it


def open_store(create: bool = True) -> MlflowClient:
    """MLflow's client on the studio's store, made on first use. Raises TrackerError.

    `create=False` never makes a new database: a worker whose database was moved away waits for it to come back.
    """
    uri = tracking_uri()
    with _OPENING, explained():
        inode = _inode_or_new(create)
        known = _clients.get(uri)
        if known and known[1] == inode:
            return known[0]
        if known:
            _let_go(known[0])
        client = _import_mlflow().MlflowClient(tracking_uri=uri)
        _clients[uri] = client, inode
        return client


def experiment_id(client: MlflowClient) -> str:
    """The id of the experiment `tuner`, made if there is none."""
    uri = tracking_uri()
    if uri not in _experiments:
        found = client.get_experiment_by_name(EXPERIMENT)
        _experiments[uri] = found.experiment_id if found else _create_experiment(client)
    return _experiments[uri]


def _create_experiment(client: MlflowClient) -> str:
    # A server decides itself where artifacts go.
    location = str(artifacts()) if database() else None
    created: str = client.create_experiment(EXPERIMENT, artifact_location=location)
    return created


@contextlib.contextmanager
def as_default() -> Iterator[None]:
    """Let MLflow find this store without being told: some of its calls ask for the default one inside.

    Threads may be in it side by side. What the first one set the last one takes back: were it taken back sooner, the
    calls of the others would make an mlflow.db in the folder they run in.
    """
    uri = tracking_uri()
    with _OPENING:
        ours = bool(_inside) or "MLFLOW_TRACKING_URI" not in os.environ
        if ours:
            _inside.append(uri)
            os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        with _OPENING:
            if ours:
                _inside.remove(uri)
            if ours and not _inside:
                del os.environ["MLFLOW_TRACKING_URI"]


def warm() -> threading.Thread:
    """Import MLflow and open the store in the background, so that the first note or deletion does not wait for it."""

    def work() -> None:
        with contextlib.suppress(TrackerError):
            open_store()

    thread = threading.Thread(target=work, name="tracker-warm", daemon=True)
    thread.start()
    return thread


def _import_mlflow() -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow's own settings keep one call to a dead server waiting for four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    # These print a traceback for every failed attempt; we say it once, in a sentence.
    for noisy in ("mlflow.store.db.utils", "mlflow.utils.rest_utils", "urllib3.connectionpool", "alembic"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    return mlflow


@contextlib.contextmanager
def explained(*through: type[Exception]) -> Iterator[None]:
    """Turn whatever MLflow, SQLAlchemy or the network raise into TrackerError with one sentence, but for `through`."""
    passed: tuple[type[Exception], ...] = (TrackerError, *through)
    try:
        yield
    except passed:
        raise
    except Exception as error:
        raise TrackerError(sentence(error)) from error


_changes = 0


def changed() -> None:
    """Say that something in the store was written by this process: what was read before is old."""
    global _changes
    _changes += 1


def changes() -> int:
    """How often this process has changed something that lists show."""
    return _changes


@contextlib.contextmanager
def changing() -> Iterator[None]:
    """As `explained`, around a change that the next list has to show."""
    try:
        with explained():
            yield
    finally:
        changed()


# What a server's answers look like in the text of MLflow's errors, and what to say of them.
_SAID_BY_A_SERVER = (
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSL:|certificate",
        mark(
            "{place} cannot be trusted: its TLS certificate is refused; name the one to trust in MLFLOW_TRACKING_SERVER_CERT_PATH."
        ),
    ),
    (
        r"\b401\b|[Uu]nauthori[sz]ed|not authenticated",
        mark(
            "The tracking server at {place} asks for a user; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN."
        ),
    ),
    (
        r"\b403\b|[Ff]orbidden|[Pp]ermission denied|PERMISSION_DENIED",
        mark("The tracking server at {place} does not let this user do that; ask who runs it."),
    ),
    (
        r"too many 5\d\d error|\b5\d\d (Server|error)|error code 5\d\d|INTERNAL_ERROR|Internal Server Error",
        mark(
            "The tracking server at {place} answers with an error of its own; look in its log, what is new waits in the run's folder."
        ),
    ),
    (
        r"INVALID_PARAMETER_VALUE|BAD_REQUEST|\b400\b",
        mark("The tracking server at {place} refuses a value: {said}"),
    ),
)


def sentence(error: Exception) -> str:
    """What is wrong with the tracker and what to do."""
    said = redact(" ".join(str(error).split()))
    place = database() or shown_uri()
    if not database():
        for pattern, answer in _SAID_BY_A_SERVER:
            if re.search(pattern, said):
                return tr(answer, place=place, said=said[:300])
    if "database is locked" in said:
        return tr("{place} is locked by another program; what is new waits in the run's folder.", place=place)
    if "readonly database" in said or isinstance(error, PermissionError):
        return tr(
            "{place} cannot be written to; give yourself the right to write it, what is new waits till then.",
            place=place,
        )
    if "unable to open database" in said:
        return tr(
            "{place} cannot be opened; give yourself the right to read and write it, what is new waits till then.",
            place=place,
        )
    if "disk is full" in said:
        return tr(
            "The disk of {place} is full; free some space, what is new waits in the run's folder.",
            place=place,
        )
    if "not a database" in said or "malformed" in said:
        return tr("{place} is damaged; put a backup in its place, then run `tuner sync`.", place=place)
    if "out-of-date database schema" in said or "Can't locate revision" in said:
        return tr(
            "{place} was made by another version of MLflow; copy it, then run `mlflow db upgrade {shown_uri}`.",
            place=place,
            shown_uri=shown_uri(),
        )
    if "Connection refused" in said or "Max retries" in said or "Failed to resolve" in said:
        return tr(
            "The tracking server at {place} does not answer; what is new waits in the run's folder.",
            place=place,
        )
    return tr("The tracker at {place} failed: {said}", place=place, said=said[:200] or type(error).__name__)


# --- the SQLite file


def _inode_or_new(create: bool) -> int:
    """The database file's identity; 0 where the tracker is not a file here."""
    file = database()
    if file is None:
        return 0
    if not file.exists():
        known = _clients.pop(tracking_uri(), None)
        if known:
            _let_go(known[0])
        if not create or was_used(file):
            raise TrackerError(
                tr("{file} is missing; put it back, or run `tuner sync --new` to start a new one.", file=file)
            )
        new_database(file)
    return file.stat().st_ino


def was_used(file: Path) -> bool:
    """Whether runs were recorded in a database that is gone: a new one in its place would hide that."""
    return file.with_name(file.name + "-wal").exists() or any(paths.runs().glob("*/tracking.json"))


def _let_go(client: Any) -> None:
    # Open connections would go on writing into a file that was moved away.
    with contextlib.suppress(AttributeError):
        client._tracking_client.store.engine.dispose()
    _experiments.clear()


def new_database(file: Path) -> None:
    """A fresh database with the experiment in it, put in place whole. One that is there already stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as db:
            db.executescript(_schema())
            now = int(time.time() * 1000)
            for number, name, folder in ((0, "Default", "artifacts/0"), (1, EXPERIMENT, "artifacts")):
                db.execute(
                    "INSERT INTO experiments VALUES (?, ?, ?, 'active', ?, ?, 'default')",
                    (number, name, str(paths.mlruns() / folder), now, now),
                )
            # Readers and a writer at once, and a write in 9 ms where the default takes 37.
            db.execute("PRAGMA journal_mode=WAL")
        fresh.chmod(0o600)  # its -wal and -shm get the same
        with contextlib.suppress(FileExistsError):
            os.link(fresh, file)
    finally:
        fresh.unlink(missing_ok=True)


def _schema() -> str:
    """The tables of the installed MLflow: shipped, or made once and kept in the user's cache."""
    version = importlib.metadata.version("mlflow")
    cache = paths.user_cache()
    for file in (SHIPPED_SCHEMA, cache / f"mlflow-{version}.sql"):
        with contextlib.suppress(OSError):
            text = file.read_text(encoding="utf-8")
            if text.startswith(f"-- mlflow {version}\n"):
                return text
    text = make_schema()
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        (cache / f"mlflow-{version}.sql").write_text(text, encoding="utf-8")
    return text


def make_schema() -> str:
    """Let MLflow migrate an empty database and write down what came of it. Takes seconds."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "empty.db"
        _import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
        with contextlib.closing(sqlite3.connect(file)) as db:
            lines = [line for line in db.iterdump() if not line.startswith('INSERT INTO "experiments"')]
    return f"-- mlflow {importlib.metadata.version('mlflow')}\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":  # after an upgrade of MLflow: python -m tuner.tracking.store
    SHIPPED_SCHEMA.write_text(make_schema(), encoding="utf-8")
