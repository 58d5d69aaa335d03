"""Every argument of the other tool's tables: a knob with its type and default, or refused by name with a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tuner.config.aliases import REFUSED, RENAMED
from tuner.config.config import KNOBS, check

FACTS = Path(__file__).parents[2] / "shared" / "facts" / "llamafactory.md"
WORDS = {
    "AttentionFunction.AUTO": "auto",
    "QuantizationMethod.BNB": "bnb",
    "EngineName.HF": "huggingface",
    "DownloadMode.REUSE_DATASET_IF_EXISTS": "reuse_dataset_if_exists",
}


def rows() -> list[tuple[str, str, str]]:
    """(name, type, default) of each row of the facts' argument tables."""
    if not FACTS.is_file():
        return []
    text = FACTS.read_text(encoding="utf-8")
    part = text[text.index("### 3.1 Model") : text.index("### 3.7 ")]
    found = re.findall(r"^\| \w+ \| (\w+)(?: ★)? \| (.*?) \| (\S.*?) \| ", part.replace("\\|", "¦"), re.M)
    return [
        (name, kind.replace("¦", "|"), default.strip("'\""))
        for name, kind, default in found
        if name != "Name"
    ]


ROWS = rows()


@pytest.mark.skipif(not ROWS, reason="the facts' table is not beside this checkout")
def test_the_whole_table_was_read() -> None:
    assert len(ROWS) > 230
    assert {"model_name_or_path", "pref_loss", "ppo_epochs", "top_k", "fp8", "swanlab_mode"} <= {
        r[0] for r in ROWS
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r[0])
def test_is_taken_or_refused_by_name(row: tuple[str, str, str]) -> None:
    name, _, default = row
    if name in REFUSED:
        refusal = REFUSED[name]
        assert refusal.sentence.endswith(".")
        assert default == "REQUIRED" or refusal.fits(WORDS.get(default, default))
        said = check({"model_name_or_path": "m", name: "something"})[1]
        assert [p for p in said if p.knob == name and refusal.sentence in p.sentence]
        return
    assert name in KNOBS or name in RENAMED
    if name in KNOBS and default not in ("REQUIRED",):
        assert _same_default(KNOBS[name].default, default), (KNOBS[name].default, default)


def _same_default(ours: object, theirs: str) -> bool:
    theirs = WORDS.get(theirs, theirs)
    if theirs == "None":
        return ours in (None, ())
    if isinstance(ours, tuple):
        return ",".join(ours) == theirs
    if isinstance(ours, bool | str):
        return str(ours) == theirs
    return float(ours) == float(theirs)  # type: ignore[arg-type]


def test_a_refusal_is_silent_about_a_default() -> None:
    assert [
        p
        for p in check({"model_name_or_path": "m", "vllm_maxlen": "4096", "use_unsloth": "False"})[1]
        if p.knob in REFUSED
    ] == []
