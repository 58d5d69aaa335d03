"""Names and paths of others lead nowhere outside: in catalogs, run ids, uploads and names of configs."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner import paths
from tuner.cli import main
from tuner.config.knobs import ConfigError
from tuner.data.catalog import entry, read_catalog
from tuner.data.entries import CATALOG, NOWHERE, Entry
from tuner.data.upload import receive, safe_name
from tuner.runs.run import Run

ROWS = json.dumps([{"instruction": "q", "output": "a"}])
SECRET = json.dumps([{"instruction": "CANARY", "output": "CANARY"}])
PARTS = [
    "..",
    ".",
    "",
    "in",
    "in.json",
    "out.json",
    "link.json",
    "folder",
    "up",
    "~",
    "$HOME",
    "%2e%2e",
    "\u2024\u2024",
]
PARTS += ["CON", "C:", "a\\..\\..", "..;", "#", "?", "data_evil"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog's folder, with links out of it, beside what is not its to name."""
    base = tmp_path_factory.mktemp("world")
    root = base / "data"
    for folder in (root / "in", root / "folder", base / "data_evil", base / "elsewhere"):
        folder.mkdir(parents=True)
    for inside in (root / "in.json", root / "in" / "in.json", root / "folder" / "in.json"):
        inside.write_text(ROWS)
    for outside in (
        base / "out.json",
        base / "in.json",
        base / "data_evil" / "in.json",
        base / "elsewhere" / "in.json",
    ):
        outside.write_text(SECRET)
    (root / "link.json").symlink_to("../out.json")
    (root / "folder" / "link.json").symlink_to(base / "out.json")
    (root / "up").symlink_to("..")
    return base


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("/".join))
def test_a_relative_file_name_never_leads_out_of_the_catalog(world: Path, name: str) -> None:
    if name.startswith("/") or not name:
        return
    try:
        files = entry("set", {"file_name": name}, world / "data").files()
    except ConfigError:
        return
    for path in files:
        assert path.resolve().is_relative_to(world / "data")
        assert "CANARY" not in path.read_text()


@pytest.mark.parametrize(
    "name", ["link.json", "../out.json", "in/../../out.json", "up/out.json", "folder", "up/elsewhere"]
)
def test_what_leads_out_is_refused_and_the_way_is_said(world: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"leads out of .*write .* as its file_name") as refused:
        entry("set", {"file_name": name}, world / "data").files()
    assert str(world) in str(refused.value)


def test_a_path_that_the_person_wrote_whole_is_theirs(world: Path) -> None:
    whole = [str(world / "out.json"), str(world / "data" / "link.json"), str(world / "elsewhere")]
    assert all(entry("set", {"file_name": name}, world / "data").files() for name in whole)
    (world / "mount").symlink_to(world / "data")  # the folder itself may lie anywhere
    assert entry("set", {"file_name": "in.json"}, world / "mount").files()


@pytest.mark.parametrize("key", ["file_name", "script_url"])
@pytest.mark.parametrize("place", ["/etc/passwd.json", "in.json"])
def test_a_catalog_from_a_hub_names_no_file_of_this_machine(key: str, place: str) -> None:
    with pytest.raises(ConfigError, match="in a catalog from the hub"):
        entry("set", {key: place}, NOWHERE).files()
    assert Entry("set", NOWHERE, origin="hub", location="a/b").files() == []


def test_the_shell_shows_no_row_of_it(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(world))
    (world / "data" / CATALOG).write_text(
        json.dumps({"set": {"file_name": "link.json"}, "ok": {"file_name": "in.json"}})
    )
    main(["data", "list"])
    said = capsys.readouterr()
    assert "CANARY" not in said.out + said.err
    assert "leads out of" in said.out
    assert set(read_catalog("data")) == {"set", "ok"}


HOSTILE = st.text(
    st.one_of(st.sampled_from("./\\~:%\0\n\u2024\uff0e"), st.sampled_from(string.ascii_letters)), max_size=40
)


@given(HOSTILE)
def test_a_runs_id_never_leads_out_of_the_runs(text: str) -> None:
    try:
        folder = Run(text).folder
    except ValueError:
        return
    assert folder.is_relative_to(paths.runs().resolve())


@given(HOSTILE)
def test_a_name_made_into_a_file_is_one_component(text: str) -> None:
    made = paths.slug(text)
    assert made and made == Path(made).name and made not in (".", "..") and "\0" not in made
    try:
        assert Path(safe_name(text)).name == text
    except ConfigError:
        return


@given(HOSTILE)
def test_an_upload_lies_in_its_folder(world: Path, name: str) -> None:
    folder = world / "uploaded"
    try:
        place = receive([ROWS.encode()], f"{name}.json", folder)
    except ConfigError:
        return
    assert place.parent == folder / "uploads"
    place.unlink()
