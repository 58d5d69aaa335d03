"""tuner chat: what is typed and what is said, against a scripted socket; and the whole way on a real model, once."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from conftest import ROOT
from test_completions import Scripted, chunk, refuses, says, server  # noqa: F401  a fixture

from tuner import cli
from tuner.cli import words
from tuner.config.inference import read_words
from tuner.config.serving import ServeConfig
from tuner.jobs import control
from tuner.runs.run import all_runs

LLAMA_FACTORY = """
model_name_or_path: models/tiny
adapter_name_or_path: saves/tiny/lora/sft
template: default
infer_backend: huggingface  # choices: [huggingface, vllm, sglang, ktransformers]
trust_remote_code: true
"""


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def talked(server: Scripted, system: str = "") -> int:  # noqa: F811
    """The talk itself, once its server is there."""
    chat = sys.modules["tuner.cli.chat"]
    return chat._talk(server.place, {"model": "base"}, system)  # type: ignore[attr-defined, no-any-return]


def test_what_is_said_is_remembered_until_it_is_cleared(
    server: Scripted,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.answer = says(chunk({"content": "Hi "}) + chunk({"content": "there."}, "stop"))
    typed(monkeypatch, "one", "", "two", "clear", "three", "exit", "four")
    assert talked(server, "Be kind.") == words.OK
    said = [[m["content"] for m in asked["messages"]] for asked in server.asked]
    assert said == [
        ["Be kind.", "one"],
        ["Be kind.", "one", "Hi there.", "two"],
        ["Be kind.", "three"],
    ]
    out = capsys.readouterr().out
    assert out.count("Assistant: Hi there.") == 3 and "Chat cleared." in out


def test_a_picture_goes_with_the_next_message(
    server: Scripted,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "a b.jpg")
    (tmp_path / "no.png").write_text("no picture")
    server.answer = says(chunk({"content": "Red."}, "stop"))
    lines = (
        f"image {tmp_path / 'a b.jpg'}",
        f"image {tmp_path / 'no.png'}",
        "image gone.png",
        "What is it?",
        "And now?",
    )
    typed(monkeypatch, *lines)
    assert talked(server) == words.OK
    first, second = (asked["messages"] for asked in server.asked)
    picture, text = first[0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/jpg;base64,/9j/")
    assert text == {"type": "text", "text": "What is it?"}
    assert second[0]["content"] == first[0]["content"] and second[2]["content"] == "And now?"
    told = capsys.readouterr()
    assert told.out.count("goes with the next message") == 1
    assert "not a picture" in told.err and "picture not found" in told.err


def test_an_answer_that_failed_is_told_and_forgotten(
    server: Scripted,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.answer = refuses(400, {"error": {"message": "The prompt is too long."}})
    typed(monkeypatch, "one")  # and the input's end
    assert talked(server) == words.FAILED
    assert capsys.readouterr().err == "tuner: The prompt is too long.\n"
    server.answer = says(chunk({"content": "Yes."}, "stop"))
    typed(monkeypatch, "two")
    assert talked(server) == words.OK
    assert [m["content"] for m in server.asked[-1]["messages"]] == ["two"]


def test_llama_factory_s_inference_file_is_read_as_it_is(home: Path) -> None:
    (home / "chat.yaml").write_text(LLAMA_FACTORY)
    config, silent = read_words(ServeConfig, [str(home / "chat.yaml")])
    assert not silent and config.adapter_name_or_path == ("saves/tiny/lora/sft",)
    assert (config.template, config.trust_remote_code) == ("default", True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([], "--model_name_or_path is missing"),
        (["--system"], "--system needs a text behind it"),
        (["--modle", "x"], "--modle is not known"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(
    home: Path, line: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["chat", *line]) == words.REFUSED
    assert said in capsys.readouterr().err
    assert not (home / "mlruns").exists()


@pytest.mark.slow
def test_the_whole_way_on_a_real_model(launching_home: Path) -> None:
    tiny.model(launching_home / "models" / "tiny")
    words = [
        "--model_name_or_path",
        "models/tiny",
        "--use_cpu",
        "--do_sample",
        "False",
        "--max_new_tokens",
        "8",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tuner", "chat", *words, "--system", "red"],
        cwd=launching_home,
        env={**os.environ, "TUNER_HOME": str(launching_home), "PYTHONPATH": str(ROOT)},
        input="blue cat\nclear\nblue cat\nexit\n",
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    first, second = (line for line in done.stdout.splitlines() if line.startswith("User: Assistant: "))
    assert first == second and len(first) > len("User: Assistant: "), "greedy, and begun anew in between"
    (run,) = all_runs()
    status = control.wait(run, timeout=60)
    assert (status.state, str(status.reason)) == ("stopped", "Stopped; the model is no longer loaded.")
