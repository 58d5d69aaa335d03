"""Everything that a page can change goes through tuner/ui/writes.py, which asks who is there and says who did it."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from tuner.chats.battle import Battle, Contestant
from tuner.chats.talk import Talk
from tuner.config.config import make
from tuner.data.catalog import entry as catalog_entry
from tuner.data.entries import Entry
from tuner.jobs import cleaning, control, queue
from tuner.jobs.serving import Endpoint
from tuner.runs import events
from tuner.runs.run import Run
from tuner.tracking.runs import create_run, get_row
from tuner.ui import people, writes

pytestmark = pytest.mark.usefixtures("libraries_looked_through_once")
ROOT = Path(__file__).parents[1]
AUTH = """
[auth]
redirect_uri = "https://studio.example.org/oauth2callback"
cookie_secret = "0123456789abcdef0123456789abcdef"
client_id = "studio"
client_secret = "not told"
server_metadata_url = "https://id.example.org/.well-known/openid-configuration"
[tuner]
launchers = ["mia@example.org"]
readers = ["ron@example.org"]
"""
A_BATTLE = Battle("0" * 16, "models/tiny", Contestant("base"), Contestant("adapter/1"), ())
CONFIG = {"model_name_or_path": "models/tiny", "dataset": "chat", "stage": "sft", "use_cpu": True}
GUARDED = {n: f for n, f in vars(writes).items() if inspect.isfunction(f) and hasattr(f, "__wrapped__")}


@pytest.fixture
def with_login(home: Path) -> Iterator[Path]:
    (home / ".streamlit").mkdir()
    (home / ".streamlit" / "secrets.toml").write_text(AUTH, encoding="utf-8")
    people.login.cache_clear()
    yield home
    people.login.cache_clear()


def claims(address: str, **more: Any) -> dict[str, Any]:
    return {"is_logged_in": True, "email": address, "iat": time.time(), **more}


def asking(user: dict[str, Any], calls: list[tuple[str, tuple[Any, ...]]]) -> tuple[list[Any], list[str]]:
    """Make these calls as this person, in a real script run: what came back, and what was refused with which words."""

    def script() -> None:
        import streamlit as st

        from tuner.ui import writes

        for name, args in st.session_state["calls"]:
            try:
                st.session_state["done"].append(getattr(writes, name)(*args))
            except writes.ReadOnly as refused:
                st.session_state["refused"].append(str(refused))

    app = AppTest.from_function(script, default_timeout=60)
    app.user = user
    app.session_state["calls"], app.session_state["done"], app.session_state["refused"] = calls, [], []
    app.run()
    assert not app.exception, app.exception
    return app.session_state["done"], app.session_state["refused"]


def every_file(folder: Path) -> dict[str, str]:
    """Each file with a digest of what is in it; a database's own bookkeeping aside."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(("-wal", "-shm"))]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def a_set(home: Path) -> Entry:
    """A data set of one row."""
    (home / "data").mkdir(exist_ok=True)
    (home / "data" / "one.jsonl").write_text('{"instruction": "Say hi.", "input": "", "output": "hi"}\n')
    return catalog_entry("one", {"file_name": "one.jsonl"}, home / "data")


def a_plan(run: Run) -> cleaning.Plan:
    """To remove a checkpoint of a run, which it gets here."""
    checkpoint = run.checkpoints / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text("w")
    return cleaning.Plan((cleaning.Item(checkpoint, 1, "checkpoint", run.id),), keep=frozenset())


def a_call_of_each(run: Run, home: Path) -> dict[str, tuple[Any, ...]]:
    file = home / "rows.jsonl"
    file.write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    return {
        "submit": (make(CONFIG), "mine"),
        "sweep": ({**CONFIG, "learning_rate": "1e-4,2e-4"}, "swept"),
        "stop": (run, True),
        "resume": (run,),
        "delete_run": (run.id,),
        "restore_run": (run.id,),
        "purge": (run.id,),
        "rename_run": (run.id, "another name"),
        "set_note": (run.id, "a note"),
        "set_tag": (run.id, "tag", "value"),
        "delete_tag": (run.id, "tag"),
        "clean": (a_plan(run),),
        "mend_dataset": (a_set(home), "clean", home / "data"),
        "set_offline": (False,),
        "test_webhook": (),
        "pause": (True,),
        "hold_back": (run.id, True),
        "move": (run.id, 1),
        "set_alias": ("adapter", 1, "champion"),
        "delete_alias": ("adapter", "champion"),
        "set_card": ("adapter", 1, "what it is for"),
        "delete_adapter": ("adapter", 1),
        "receive": (iter([b'{"a": 1}\n']), "rows.jsonl", home / "data"),
        "local_file": (file,),
        "add_dataset": ("rows", file, {"columns": {"prompt": "instruction"}}, home / "data"),
        "save_config": ("mine", CONFIG),
        "serve": ("models/tiny", ["adapter/1"]),
        "change_talk": (Talk("0" * 16), lambda talk: talk),
        "forget_talk": ("0" * 16,),
        "ask": (Talk("0" * 16), "turn", "base", 0, lambda: None),
        "ask_both": (A_BATTLE, lambda: None),
        "silence": ("0" * 16,),
        "add_row": ("kept", {"messages": []}, home / "data"),
        "begin_battle": ("models/tiny", [Contestant("base"), Contestant("adapter/1")], []),
        "vote": ("0" * 16, "left"),
        "decide": (Endpoint("http://127.0.0.1:9/v1", "key"), "base", "a state", {}),
        "derive": (Entry("pairs", home / "data", location="pairs.json", ranking=True), home / "data"),
    }


@pytest.mark.parametrize(
    ("user", "word"),
    [
        (claims("ron@example.org"), "look at everything and change nothing"),
        (claims("eve@example.org"), "no access to this studio"),
        (claims("mia@example.org", email_verified=False), "no access to this studio"),
        (claims("mia@example.org", iat=time.time() - 13 * 3600), "Your login has ended"),
        ({"is_logged_in": False, "email": "mia@example.org"}, "Nobody is logged in"),
        ({}, "Nobody is logged in"),
    ],
)
def test_who_is_no_launcher_changes_nothing_whatever_is_called(
    with_login: Path, user: dict[str, Any], word: str
) -> None:
    run = create_run(make(CONFIG), "theirs")
    calls = a_call_of_each(run, with_login)
    assert set(calls) == set(GUARDED), (
        "each function of tuner/ui/writes.py that is guarded needs its call here"
    )
    before = every_file(with_login)
    done, refused = asking(
        user, [*calls.items(), ("keep_draft", ("draft-00000000", {"base": {"stage": "sft"}}))]
    )
    assert done == [None]  # a draft of theirs lives in their session
    assert len(refused) == len(calls) and all(word in sentence for sentence in refused)
    assert every_file(with_login) == before


def test_what_a_launcher_does_is_done_and_says_who_did_it(with_login: Path, launching_home: Path) -> None:
    mia = "mia@example.org"
    theirs = create_run(make(CONFIG), "theirs")  # as the shell does: in nobody's name
    done, refused = asking(
        claims(mia),
        [
            ("pause", (True,)),
            ("submit", (make(CONFIG), "mine")),
            ("sweep", ({**CONFIG, "learning_rate": "1e-4,2e-4"}, "swept")),
            ("stop", (theirs, True)),
            ("rename_run", (theirs.id, "ours")),
            ("set_note", (theirs.id, "a note")),
            ("set_tag", (theirs.id, "kept", "yes")),
            ("save_config", ("mine", CONFIG)),
            ("clean", (a_plan(theirs),)),
        ],
    )
    assert not refused and len(done) == 9 and not (theirs.checkpoints / "checkpoint-1").exists()
    mine, swept = done[1], done[2]
    for run in (mine, *swept):
        assert [(e.by, e.what) for e in events.of(run)] == [(mia, "launch")]
        row = get_row(run.id)
        assert row is not None and row.facts[events.BY] == mia and not row.tags
        assert run.status().tags[events.BY] == mia
    assert [(e.what, e.about) for e in events.of(theirs)] == [
        ("cancel", ""),
        ("rename", "ours"),
        ("note", ""),
        ("tag", "kept, yes"),
        ("clean", "checkpoint-1"),
    ]
    row = get_row(theirs.id)
    assert row is not None and events.BY not in row.facts
    done, refused = asking(claims(mia), [("delete_run", (theirs.id,)), ("purge", (theirs.id,))])
    assert not refused and not theirs.folder.exists()
    lines = (with_login / "mlruns" / "events.jsonl").read_text().splitlines()
    said = [(e["by"], e["what"], e["about"]) for e in map(json.loads, lines)]
    assert (mia, "remove for good", theirs.id) in said and (mia, "save a config", "mine.yaml") in said
    assert (mia, "pause the queue", "") in said


def test_without_a_login_everybody_may_everything_and_nobody_is_named(launching_home: Path) -> None:
    people.login.cache_clear()
    done, refused = asking({}, [("pause", (True,)), ("submit", (make(CONFIG), "mine"))])
    assert not refused
    assert not events.of(done[1]) and not (launching_home / "mlruns" / "events.jsonl").exists()
    assert queue.order().paused
    row = get_row(done[1].id)
    assert row is not None and events.BY not in row.facts
    control.stop(done[1], now=True)


def test_a_login_that_is_taken_away_while_the_studio_runs_opens_nothing(with_login: Path) -> None:
    assert not writes.may()
    (with_login / ".streamlit" / "secrets.toml").unlink()
    assert not writes.may()


@pytest.mark.parametrize(
    ("user", "seen"),
    [
        ({}, "**tuner**"),
        (claims("eve@example.org"), "no access to this studio"),
        (claims("mia@example.org", iat=0), "Your login has ended"),
    ],
)
def test_who_may_not_come_in_is_shown_the_door_and_nothing_else(
    with_login: Path, user: dict[str, Any], seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(user, monkeypatch)
    assert any(seen in said.value for said in app.markdown)
    assert {button.label for button in app.button} <= {"Log in", "Log out"} and app.button
    assert not app.title and not app.sidebar.caption


def test_who_may_come_in_is_named(with_login: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(claims("ron@example.org"), monkeypatch)
    assert [title.value for title in app.title] == ["Home"]
    assert any(said.value.endswith(", reader") for said in app.sidebar.caption)


def opened(user: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The studio's first page as this person sees it."""
    monkeypatch.chdir(ROOT)
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    app.user = {"is_logged_in": False} | user
    app.run()
    assert not app.exception, app.exception
    return app


# --- nothing goes around it ----------------------------------------------------------------------------------------

ROOMS = ("tuner.jobs.", "tuner.runs.", "tuner.tracking.", "tuner.chats.", "tuner.ui.state.")
ROOMS += ("tuner.data.upload.", "tuner.data.additions.")
READS = {
    "tuner.jobs.diagnostics": ("bundle", "versions"),
    "tuner.jobs.script": ("script",),
    "tuner.chats.battle": ("left_share", "load"),
    "tuner.chats.kept": ("is_id", "load", "newest"),
    "tuner.chats.strengths": ("expected", "strengths"),
    "tuner.chats.talk": (
        "again",
        "answered",
        "asked",
        "back_to",
        "exchange",
        "exported",
        "fresh_id",
        "opened",
        "path",
        "preset_of",
        "read_tools",
        "showing",
        "siblings",
        "titles",
        "unwritten",
    ),
    "tuner.chats.writing": ("of",),
    "tuner.data.additions": ("takes",),
    "tuner.jobs.exporting": ("estimate", "problems", "quantizer", "told"),
    "tuner.jobs.serving": ("endpoint", "living", "same_base"),
    "tuner.tracking.votes": ("tags", "votes"),
    "tuner.jobs.checking": ("of_evaluation", "of_import"),
    "tuner.jobs.cleaning": ("plan",),
    "tuner.jobs.control": ("why_not_resumable",),
    "tuner.jobs.planning": ("of", "planned", "truth"),
    "tuner.jobs.queue": ("order", "queue", "waiting"),
    "tuner.runs.reasons": ("label",),
    "tuner.jobs.submit": ("expand",),
    "tuner.jobs.watch": ("stalled",),
    "tuner.tracking.adapter_rows": ("adapters_of",),
    "tuner.tracking.adapters": ("are_there_any", "check", "find_adapters", "get_adapter", "list_adapters"),
    "tuner.tracking.evaluations": ("results",),
    "tuner.runs.checkpoints": ("of", "output_of", "step_of", "valid"),
    "tuner.runs.files": ("free",),
    "tuner.runs.events": ("of",),
    "tuner.tracking.history": ("history", "means", "metric_names"),
    "tuner.tracking.duration_estimate": ("answered", "expected_seconds", "expected_step", "time_left"),
    "tuner.runs.curve": ("thinned",),
    "tuner.runs.diverging": ("noted",),
    "tuner.runs.inputs": ("recorded", "used"),
    "tuner.runs.points": ("tail",),
    "tuner.jobs.room": ("of_run", "of_runs", "of_studio"),
    "tuner.runs.run": ("fresh_name",),
    "tuner.tracking.runs": (
        "are_there",
        "by_metric",
        "choices",
        "finished",
        "first_runs",
        "get_row",
        "list_runs",
        "names",
        "newest",
    ),
    "tuner.tracking.store": ("changes", "database", "page_of", "shown_uri", "warm"),
    "tuner.tracking.usage": ("with_mlflow", "with_peft"),
    "tuner.ui.state": (
        "arrived",
        "asked",
        "asked_all",
        "depart",
        "drafts",
        "find_back",
        "go",
        "kept_drafts",
        "first_page",
        "load_draft",
        "page",
        "read_config",
        "reword",
        "saved_configs",
        "tell",
        "without_secrets",
    ),
}
"""What pages may call by themselves: it only reads, or moves this session from page to page."""
READING = {f"{module}.{name}" for module, names in READS.items() for name in names}
HOUSEKEEPING = {"tuner.jobs.supervisor.ensure_supervisor"}
"""What the studio does for itself, whoever looks: runs that wait are started."""
READING_OF_A_RUN = {"config", "values", "status", "requested", "metrics", "log_tail", "secrets"}
FILES = {
    "write_text",
    "write_bytes",
    "unlink",
    "mkdir",
    "rmdir",
    "rmtree",
    "touch",
    "symlink_to",
    "hardlink_to",
}
FILES |= {
    "rename",
    "makedirs",
    "removedirs",
    "remove_tree",
    "copytree",
    "copyfile",
    "chmod",
    "dump",
    "safe_dump",
}
BROWSER = [ROOT / "app.py", *(ROOT / "pages").glob("*.py"), *(ROOT / "tuner" / "ui").glob("*.py")]
BROWSER = [path for path in BROWSER if path.name not in ("writes.py", "server.py")]


def named(tree: ast.Module) -> Iterator[str]:
    """The whole names of what a module imports, and of what it takes out of modules that it imports."""
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                modules[alias.asname or alias.name] = whole
                yield whole
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert not alias.name.startswith("tuner."), "import what you call by `from`"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield f"{modules[node.value.id]}.{node.attr}"


def function(whole: str) -> Any:
    """What a whole name stands for, where that is a function of the project."""
    module, _, name = whole.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return found if inspect.isfunction(found) else None


def around(source: str) -> set[str]:
    """What in a module's text changes something without tuner/ui/writes.py."""
    tree = ast.parse(source)
    wrong = {
        whole
        for whole in named(tree)
        if whole.startswith(ROOMS) and function(whole) and whole not in READING | HOUSEKEEPING
    }
    methods = {n for n, f in vars(Run).items() if inspect.isfunction(f) and not n.startswith("_")}
    forbidden = methods - READING_OF_A_RUN | FILES
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in forbidden
        ):
            wrong.add(f"{ast.unparse(node.func)}()")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            wrong.add("open()")
    return wrong


OWN = {
    "state.py": {
        "drafts().mkdir()",
        "(drafts() / f'{name}.yaml').unlink()",
        "saved().mkdir()",
        "tuner.runs.files.replace_text",
    },
    # which language somebody reads, a file a person: readers choose too
    "visits.py": {"_file().parent.mkdir()", "_file().touch()"},  # when somebody was here, readers too
    "languages.py": {"_file().parent.mkdir()", "tuner.runs.files.replace_text"},
    "draft.py": {"file.write()"},  # a file of nobody else's, gone at once
}


@pytest.mark.parametrize("path", BROWSER, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_page_changes_anything_but_through_writes(path: Path) -> None:
    assert around(path.read_text(encoding="utf-8")) <= OWN.get(path.name, set())


@pytest.mark.parametrize(
    "line",
    [
        "from tuner.jobs import control\ncontrol.stop(run)",
        "from tuner.jobs.submit import submit",
        "from tuner.jobs.submit import submit as s",
        "from tuner.tracking import runs as r\nact = r.delete_run",
        "from tuner.tracking.adapters import delete_adapter",
        "from tuner.data import upload\nupload.remove('a', 'b')",
        "from tuner.ui import state\nstate.save_config('a', {})",
        "from tuner.runs.run import Run\nRun('a').request('stop')",
        "from tuner import paths\n(paths.runs() / 'a').unlink()",
        "open('a', 'w')",
    ],
)
def test_the_look_for_ways_around_finds_them(line: str) -> None:
    assert around(line)
