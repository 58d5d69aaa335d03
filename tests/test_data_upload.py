"""Bring your own file: guessed, mapped, saved; hostile files refused with nothing left behind."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from data_world import LABELLED, RANKED, REAL, catalog, model_folder, needs_real

from tuner.cli import main
from tuner.cli.data import data as command
from tuner.config.knobs import ConfigError
from tuner.data import pages, verbs
from tuner.data.catalog import read_catalog
from tuner.data.files import Broken
from tuner.data.formats import Dropped
from tuner.data.guess import guess, preview
from tuner.data.upload import local_file, receive, remove, safe_name, save

ALPACA = [{"instruction": "q", "input": "", "output": "a"}]
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
CASES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "alpaca": (ALPACA, "chat"),
    "other names": ([{"question": "q", "answer": "a", "system_prompt": "s"}], "chat"),
    "chat": ([{"messages": TURNS}], "chat"),
    "sharegpt": (
        [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}],
        "chat",
    ),
    "pairs": ([{"prompt": "q", "chosen": "a", "rejected": "b"}], "pairs"),
    "whole pairs": (
        [{"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "b"}]}],
        "pairs",
    ),
    "labelled": ([{"prompt": "q", "completion": "a", "label": True}], "labelled"),
    "labelled chat": ([{"messages": TURNS, "label": False}], "labelled"),
    "text": ([{"text": "long text"}], "text"),
    "numbers as answers": ([{"question": "1+1", "answer": 2}, {"question": "0+0", "answer": 0.0}], "chat"),
    "first rows with gaps": ([{"prompt": "q"}, {"prompt": "q", "completion": "a"}], "chat"),
    "first pair without an answer": ([{"prompt": "q", "rejected": "b"}, *[{"prompt": "q", "chosen": "a", "rejected": "b"}] * 2], "pairs"),
    "chats one of which is broken": ([{"messages": []}, {"messages": "x"}, {"messages": TURNS}, {"messages": TURNS}], "chat"),
    "first turn without words": ([{"messages": [{"role": "user"}, TURNS[1]]}, {"messages": TURNS}], "chat"),
    "labels as pandas writes them": ([{"prompt": "q", "completion": "a", "label": v} for v in (1.0, None, 0.0)], "labelled"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_format_and_columns_are_guessed_with_reasons(tmp_path: Path, case: str) -> None:
    rows, kind = CASES[case]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows))
    found = guess(path)
    assert found.sure and found.reasons
    assert not isinstance(preview(path, found.attributes)[-1][1], Dropped)
    save("mine", path, found.attributes, tmp_path)
    assert read_catalog(tmp_path)["mine"].kind == kind


@needs_real
@pytest.mark.parametrize(
    "name", ["identity", "dpo_en_demo", "kto_en_demo", "glaive_toolcall_en_demo", "hh_rlhf_en"]
)
def test_real_files_are_guessed_as_their_catalog_says(name: str) -> None:
    path = REAL / f"{name}.json"
    assert all(not isinstance(row, Dropped) for _, row in preview(path, guess(path).attributes, rows=50))


def test_a_file_with_unusual_columns_says_so_and_can_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({"frage": "q", "antwort": "a"}))
    found = guess(path)
    assert not found.sure and found.columns == ["frage", "antwort"]
    mapped = {"columns": {"prompt": "frage", "response": "antwort"}}
    assert preview(path, mapped)[0][1] == {"messages": TURNS}


def test_an_upload_lies_under_its_content_and_is_saved(tmp_path: Path) -> None:
    body = json.dumps(ALPACA).encode()
    path = receive([body[:5], body[5:]], "../../my set.json", tmp_path)
    assert (
        path.parent == tmp_path / "uploads" and path.name.startswith("my-set.") and path.read_bytes() == body
    )
    assert receive([body], "my set.json", tmp_path) == path  # the same content has the same name
    made = save("mine", path, guess(path).attributes, tmp_path)
    assert made.files() == [path]
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert info["mine"]["file_name"] == f"uploads/{path.name}"
    with pytest.raises(ConfigError, match="already"):
        save("mine", path, {}, tmp_path)
    remove("mine", tmp_path)
    assert read_catalog(tmp_path) == {} and path.exists()


def test_saving_keeps_the_rest_of_the_catalog_as_it_is(tmp_path: Path) -> None:
    folder = catalog(tmp_path, first=({"columns": {"prompt": "ä"}}, ALPACA))
    before = json.loads((folder / "dataset_info.json").read_text())
    save("second", folder / "first.json", {}, folder)
    after = json.loads((folder / "dataset_info.json").read_text())
    assert after.pop("second") and after == before
    with pytest.raises(ConfigError):
        save("third", folder / "first.json", {"formatting": "wrong"}, folder)
    assert "third" not in json.loads((folder / "dataset_info.json").read_text())


def endless(chunk: bytes) -> Iterator[bytes]:
    while True:
        yield chunk


MB = 1 << 20
HOSTILE: dict[str, tuple[Any, str, str]] = {
    "five gigabytes": (lambda: endless(b'{"a": 1}\n' * 10_000), "a.jsonl", "larger than 8 MB"),
    "one endless line": (lambda: endless(b"x" * MB), "a.jsonl", "larger than 8 MB"),
    "depth 100k": (lambda: [b"[" * 100_000 + b"]" * 100_000], "a.json", "No row"),
    "NUL bytes": (lambda: [b'{"a": 1}\n' * 9000, b'{"a": "\0"}'], "a.jsonl", "NUL"),
    "UTF-16": (lambda: [json.dumps(ALPACA).encode("utf-16")], "a.json", "UTF-16"),
    "nothing": (list, "a.json", "empty"),
    "no rows": (lambda: [b"[]"], "a.json", "holds no rows"),
    "a program": (lambda: [b"MZ"], "a.exe", "not one of json"),
    "no parquet": (lambda: [b"PAR1" * 100], "a.parquet", "not readable as parquet"),
    "broken": (lambda: [b"{broken\n{more"], "a.jsonl", "No row of"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_upload_is_refused_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    chunks, name, said = HOSTILE[case]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=said):
        receive(chunks(), name, tmp_path, largest=8 * MB)
    assert not list((tmp_path / "uploads").glob("*")) and not list((tmp_path / "uploads").glob(".*"))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # kilobytes


def test_a_line_of_many_megabytes_takes_little_memory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="longer than 16 MB"):
        receive([b'{"a": "', *[b"x" * MB] * 40, b'"}'], "a.jsonl", tmp_path)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 81, "a\nb", "a..b"])
def test_names_that_could_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no name"):
        safe_name(name)


def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text(json.dumps(ALPACA))
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    with pytest.raises(ConfigError, match="is a link"):
        local_file(tmp_path / "link.json")
    assert local_file(tmp_path / "real.json") == tmp_path / "real.json"


def lying_parquet(path: Path) -> None:
    """A parquet file of 1,000 rows whose footer says 8,191."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"instruction": ["q"] * 1000, "output": ["a"] * 1000}), path)
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    lie = whole[footer:].replace(b"\xd0\x0f", b"\xfe\x7f")  # the counts, as thrift writes them
    assert lie != whole[footer:]
    path.write_bytes(whole[:footer] + lie)


def short_arrow(path: Path) -> None:
    """An arrow stream that ends in the middle."""
    pyarrow = pytest.importorskip("pyarrow")
    rows = pyarrow.table({"instruction": ["q"] * 1000, "output": ["a"] * 1000})
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(said: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(said) and None


WIDE = ",".join(f"c{i}" for i in range(20_000))
LATE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "parquet that lies": ("a.parquet", lying_parquet, "promises 8,191 rows and holds 1,000"),
    "arrow that ends early": (
        "a.arrow",
        short_arrow,
        "a.arrow is not readable as arrow: Expected to be able",
    ),
    "csv of many columns": ("a.csv", text(f"{WIDE}\n{WIDE}\n"), "a.csv has 20,000 columns; keep those"),
    "row of many keys": ("a.json", text(json.dumps([{f"k{i}": 1 for i in range(20_000)}])), "20,000 keys"),
    "nothing but a header": ("a.csv", text("instruction,output\n"), "it holds no rows"),
    "pandas' NaN": ("a.json", text('[{"instruction": "q", "output": NaN}]'), "no answer"),
    "terminal codes": (
        "a.json",
        text('[{"instruction": "q", "output": "", "\\u001b[31m": 1}]'),
        "empty answer",
    ),
}


@pytest.mark.parametrize("case", LATE)
def test_a_hostile_file_of_the_catalog_is_one_sentence(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, make, said = LATE[case]
    folder, model = catalog(tmp_path / "data", a=({"file_name": name}, "")), str(model_folder(tmp_path / "m"))
    make(folder / name)
    there = ["--dataset_dir", str(folder)]
    words = {"list": there, "report": ["a", "--model", model, "--template", "chatml", *there]}
    told = {}
    for verb, rest in words.items():
        code = main(["data", verb, *rest])
        out = capsys.readouterr()
        told[verb] = out.out + out.err
        assert code in (0, 2) and "Traceback" not in told[verb] and "\x1b" not in told[verb]
    assert said in (told["list"] if case not in ("parquet that lies",) else told["report"])
    assert sorted(p.name for p in folder.iterdir()) == sorted([name, "dataset_info.json"])


def test_a_row_that_a_file_promises_and_lacks_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lying_parquet(tmp_path / "a.parquet")
    for held in (1 << 20, 0):  # in memory, and gone through
        monkeypatch.setattr(pages, "HELD", held)
        opened = pages.Pages(tmp_path / "a.parquet")
        assert opened.row(999).record == {"instruction": "q", "output": "a"}
        assert isinstance(opened.row(5000).record, Broken)


def test_control_characters_are_shown_on_a_terminal_not_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"instruction": "q\x1b[31m", "output": "a\x07\u009b"}]
    folder, model = catalog(tmp_path, a=({}, rows)), str(model_folder(tmp_path / "m"))
    assert command(["show", "a", "--model", model, "--template", "chatml", "--dataset_dir", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "q\\x1b[31m" in out and "\\x07" in out and not set("\x1b\x07\u009b") & set(out)


def test_formulas_and_scripts_are_text(tmp_path: Path) -> None:
    words = ["=cmd|'/c calc'!A1", "<script>alert(1)</script>", "<img src=x onerror=alert(1)>"]
    path = receive(
        [b"prompt,response\n", "\n".join(f'"{w}","{w}"' for w in words).encode()], "a.csv", tmp_path
    )
    rows = [row for _, row in preview(path, guess(path).attributes)]
    assert [r["messages"][0]["content"] for r in rows if isinstance(r, dict)] == words


def test_the_list_says_what_is_wrong_with_a_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {
        "fine": ({}, ALPACA),
        "gone": ({}, ALPACA),
        "named": ({"columns": {"prompt": "frage", "response": "output"}}, ALPACA),
        "unusable": ({}, [{"instruction": "q", "output": " "}]),
        "videos": ({"columns": {"videos": "clips"}}, ALPACA),
        "broken": ({}, "{no json"),
        "afar": ({"hf_hub_url": "owner/afar"}, ALPACA),
    }
    folder = catalog(tmp_path, **sets)
    (folder / "gone.json").unlink()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    said = {row["name"]: row["problem"] for row in verbs.list_rows(folder)}
    assert said.pop("fine") == ""
    for name, part in {
        "gone": "there is no",
        "named": "no row has 'frage'; fix columns in dataset_info.json, the rows have instruction, input, output.",
        "unusable": "none of its first rows can be used (empty answer",
        "videos": "holds videos",
        "broken": "none of its first rows can be read (not JSON",
        "afar": "is on a hub that cannot be reached",
    }.items():
        assert part in said[name], name
    assert command(["list", "--dataset_dir", str(folder)]) == 0
    assert "no row has 'frage'" in capsys.readouterr().out
    assert command(["list", "--json", "--dataset_dir", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {r["name"]: r["problem"] for r in map(json.loads, lines)} == {"fine": "", **said}


def test_the_verbs_answer_in_json(tmp_path: Path) -> None:
    folder = catalog(tmp_path / "data", a=({}, [*ALPACA, {"instruction": "q"}]), gone=({}, ALPACA))
    (folder / "gone.json").unlink()
    model = str(model_folder(tmp_path / "model"))
    listed = {row["name"]: row for row in verbs.list_rows(folder)}
    assert (listed["a"]["rows"], listed["a"]["kind"]) == (2, "chat")
    assert "there is no" in listed["gone"]["problem"]
    told = verbs.report("a", model, dataset_dir=str(folder), template="chatml", cutoff_len=64)
    assert (told["read"], told["kept"], told["dropped"]["no answer"]["examples"][0]["line"]) == (2, 1, 1)
    shown = verbs.show("a", 0, model, dataset_dir=str(folder), template="chatml")
    tokens = shown["sides"]["text"]
    assert "".join(t["text"] for t in tokens if t["trained"]) == "a<|im_end|>\n"
    assert [t["special"] for t in tokens][0] is True and tokens[0]["text"] == "<|im_start|>"
    assert verbs.show("a", 1, model, dataset_dir=str(folder))["dropped"] == "no answer"
    json.dumps([listed, told, shown])


def test_a_row_is_shown_only_for_a_stage_that_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better = {"from": "gpt", "value": "a"}
    asked = {"from": "human", "value": "q"}
    sets: dict[str, tuple[dict[str, Any], Any]] = {
        "chat": ({}, ALPACA),
        "pairs": (
            RANKED,
            [{"conversations": [asked], "chosen": better, "rejected": {**better, "value": "b"}}],
        ),
        "labelled": (LABELLED, [{"messages": TURNS, "label": True}]),
        "text": ({"columns": {"prompt": "text"}}, [{"text": "x"}]),
    }
    fine = {
        ("chat", "sft"),
        ("chat", "pt"),
        ("pairs", "dpo"),
        ("pairs", "rm"),
        ("labelled", "kto"),
        ("text", "pt"),
    }
    folder, model = catalog(tmp_path / "data", **sets), str(model_folder(tmp_path / "m"))
    for name in sets:
        for stage in ("pt", "sft", "rm", "dpo", "kto"):
            words = [
                name,
                "--model",
                model,
                "--template",
                "chatml",
                "--dataset_dir",
                str(folder),
                "--stage",
                stage,
            ]
            said = []
            for verb in ("show", "report"):
                code = main(["data", verb, *words])
                out = capsys.readouterr()
                assert code == (0 if (name, stage) in fine else 2) and "Traceback" not in out.err
                said.append(out.err)
            assert said[0] == said[1] and (f"{name} holds" in said[0]) == ((name, stage) not in fine)
    words = [
        "chat",
        "--model",
        model,
        "--template",
        "glm4",
        "--dataset_dir",
        str(folder),
        "--train_on_prompt",
        "True",
    ]
    assert {main(["data", verb, *words]) for verb in ("show", "report")} == {2}
    first, second = capsys.readouterr().err.splitlines()
    assert first == second and "--train_on_prompt" in first
