"""What the studio writes for a person to run or keep is read back as it was, whatever the values hold."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tuner.config.config import Config, check, make
from tuner.config.reading import parse_words, read
from tuner.config.writing import command, to_yaml

ODD = [
    "--",
    "--help",
    "--learning_rate=9",
    "-1",
    "=",
    "a=b",
    "\n",
    "x\n",
    " x ",
    "${x}",
    "\\${x}",
    "\\\\${",
    "$",
    "$(x)",
    "`x`",
]
ODD += [
    "'",
    '"',
    "\\",
    "\\\n",
    "[a]",
    "{a}",
    '{"a": 1}',
    "null",
    "~",
    "true",
    "a,b",
    ",",
    "#",
    "!x",
    "*",
    "\u2028",
    "\x85",
    "😀",
]
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
VALUE = st.lists(st.one_of(st.sampled_from(ODD), TEXT), max_size=4).map("".join)
NAMES = st.lists(VALUE.filter(bool), max_size=4)
JSON = st.recursive(
    VALUE | st.integers() | st.booleans() | st.none(), lambda v: st.lists(v, max_size=2), max_leaves=4
)


def config(values: dict[str, Any]) -> Config | None:
    """The config if there is one with these values, and none of them is refused as a secret."""
    made, problems = check({"model_name_or_path": "m", "dataset": "d", **values})
    secret = any("holds a password or a token" in problem.sentence for problem in problems)
    return made if made is not None and not secret else None


def of(words: list[str]) -> dict[str, Any] | None:
    made, _ = check(parse_words(words[2:]))
    return None if made is None else made.plain()


def in_a_shell(text: str) -> list[str]:
    """The words that bash makes of a line."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {text}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


@given(VALUE, VALUE, VALUE, NAMES, NAMES, st.dictionaries(VALUE, JSON, max_size=2))
@example("--help", "--x=1\n", "\\${a}", ["a,b", "c\n"], ["null"], {"a": "${b}"})
@example("", "", "", ["d"], [], {"_hubtoken": [""]})
def test_the_command_and_the_file_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    system: str,
    folder: str,
    dataset: list[str],
    labels: list[str],
    extra: dict[str, Any],
) -> None:
    values = {"run_name": name, "default_system": system, "output_dir": folder, "dataset": dataset}
    asked = config({**values, "label_names": labels, "lr_scheduler_kwargs": extra})
    if asked is None:
        return
    said = command(asked)
    assert of(in_a_shell(said)) == asked.plain()
    file = tmp_path_factory.getbasetemp() / "spelled.yaml"
    file.write_text(to_yaml(asked.plain()), encoding="utf-8")
    assert make(read(file)).plain() == asked.plain()


def test_a_run_whose_text_looks_like_a_variable_is_made(home: Path) -> None:
    from tuner.runs.run import Run

    asked = make({"model_name_or_path": "m", "dataset": "d", "default_system": "It costs ${amount}."})
    run = Run("a")
    run.create(asked, "a")
    assert run.config() == asked
    assert run.values()["default_system"] == "It costs ${amount}."


def test_an_ordinary_command_stays_plain() -> None:
    asked = make(
        {"model_name_or_path": "m", "dataset": "a,b", "learning_rate": 1e-5, "run_name": "it's mine"}
    )
    assert command(asked).splitlines() == [
        "tuner train \\",
        "  --model_name_or_path m \\",
        "  --dataset a,b \\",
        "  --learning_rate 1e-05 \\",
        """  --run_name 'it'"'"'s mine'""",
    ]


@pytest.mark.parametrize(
    "line", ["dataset=[a,b]", "dataset=['a','b']", 'dataset=["a","b"]', "dataset=a,b", "dataset=[a, b]"]
)
def test_lists_are_read_in_every_spelling(line: str) -> None:
    assert make({"model_name_or_path": "m", **parse_words([line])}).dataset == ("a", "b")
