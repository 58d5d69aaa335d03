"""The code that README and the Adapters page show runs as it stands, from any folder, and leaves nothing there."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import tiny

from tuner.config.config import make
from tuner.tracking import usage
from tuner.tracking.adapters import AdapterRow, register
from tuner.tracking.mirror import sync
from tuner.tracking.runs import create_run

ROOT = Path(__file__).parents[1]
STUDIO = "/path/to/the/studio"
"""What README writes for the studio's folder."""


def of_the_docs() -> list[str]:
    """The blocks of python code on the page that says how a model is taken along."""
    indented = re.findall(
        r"(?:^ {4,}.*\n|^\n)+", (ROOT / "docs" / "export.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    found = [textwrap.dedent(block.strip("\n")) for block in indented]
    return [block for block in found if re.search(r"^(import|from) \w+", block, re.MULTILINE)]


def trained(folder: Path, base: Path, stage: str) -> Path:
    """An adapter of a base, as a run leaves it; its weights are those it begins with."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    if stage == "rm":
        model, task = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), "SEQ_CLS"
    else:
        model, task = AutoModelForCausalLM.from_pretrained(base), "CAUSAL_LM"
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type=task)).save_pretrained(
        folder
    )
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def registered(home: Path, base: str, stage: str, name: str) -> AdapterRow:
    run = create_run(
        make({"stage": stage, "do_train": True, "model_name_or_path": base, "dataset": "d"}), name
    )
    sync(run)
    return register(run, trained(home / name, home / base, stage), name=name, aliases=["champion"])


def of_its_own(code: list[str], folder: Path) -> str:
    """What the blocks print in a process that knows nothing of the studio."""
    (folder / "shown.py").write_text(f"for block in {code!r}:\n    exec(block, {{}})\n    print('--')\n")
    unset = {
        n: v for n, v in os.environ.items() if n not in ("TUNER_HOME", "MLFLOW_TRACKING_URI", "PYTHONPATH")
    }
    done = subprocess.run(
        [sys.executable, "shown.py"], cwd=folder, env=unset, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "shown.py").unlink()
    return done.stdout


def here(code: list[str], folder: Path) -> str:
    """What they print in this process, where the libraries are imported already."""
    from mlflow.tracking._tracking_service import utils

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setattr(utils, "_tracking_uri", None)  # what they set is taken back
        patch.setenv("MLFLOW_TRACKING_URI", "")
        for name in ("TUNER_HOME", "MLFLOW_TRACKING_URI"):
            patch.delenv(name)
        for block in code:
            exec(block, {})
            print("--")
    return said.getvalue()


@pytest.mark.parametrize("said_by", [here, pytest.param(of_its_own, marks=pytest.mark.slow)])
def test_the_code_that_is_shown_runs_from_another_folder(
    home: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    said_by: Callable[[list[str], Path], str],
) -> None:
    (home / "data").mkdir()
    (home / "data" / "starter").symlink_to(ROOT / "data" / "starter")
    tiny.model(home / "models" / "tiny model")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)  # a sync registers from wherever it is typed
    starter = registered(home, "data/starter", "dpo", "starter-starter_dpo-dpo")
    scorer = registered(home, "models/tiny model", "rm", "scorer")
    shown = [*of_the_docs(), usage.with_mlflow(starter), usage.with_peft(starter), usage.with_peft(scorer)]
    assert len(shown) >= 4 and usage.with_mlflow(scorer) == ""

    code = [block.replace(STUDIO, str(home)) for block in shown]
    said = [part.strip() for part in said_by(code, elsewhere).split("--\n")]
    answers, score = said[:-2], said[-2]
    assert len(answers) == len(code) - 1 and all("Saltbay" in answer for answer in answers), said
    assert float(score) == float(score)
    assert not list(elsewhere.iterdir())
