"""An adapter that was trained elsewhere is looked through, copied and registered; aliases remember where they were."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tuner import worker
from tuner.config.importing import ImportConfig
from tuner.jobs import submit
from tuner.jobs.checking import of_import
from tuner.runs.run import Run
from tuner.tracking.adapter_rows import AdapterRow
from tuner.tracking.adapters import delete_alias, get_adapter, list_adapters, set_alias, set_note
from tuner.tracking.evaluations import RESULTS, Measured, tell_versions
from tuner.tracking.store import open_store
from tuner.ui.lineage import dot


@pytest.fixture
def foreign(launching_home: Path) -> Path:
    """A folder of PEFT's as another tool left it, beside its base."""
    base = tiny.model(launching_home / "model")
    folder = launching_home / "elsewhere"
    made = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj"])
    )
    made.save_pretrained(folder)
    (folder / "optimizer.pt").write_bytes(pickle.dumps("not an adapter's"))
    return folder


def config_of(folder: Path, **more: str) -> ImportConfig:
    return ImportConfig(adapter_name_or_path=str(folder), **more)


def by_shell(foreign: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tuner", "adapters", "--import", str(foreign), "--name", "found"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def here(foreign: Path) -> None:
    """As the worker of that verb does, in this process."""
    assert worker.run_here(submit.create(config_of(foreign, adapter_name="found"))) == 0


@pytest.mark.parametrize("way", [here, pytest.param(by_shell, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("mirror_here")
def test_it_is_registered_with_what_belongs_to_it(foreign: Path, way: Callable[[Path], None]) -> None:
    way(foreign)
    row = get_adapter("found", 1)
    assert row is not None and (row.base, row.rank, row.stage) == (
        str(foreign.parent / "model"),
        "4",
        "import",
    )
    assert row.folder is not None and row.state == "ok"
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(row.files)
    kept = [path.name for path in (foreign.parent / "mlruns").rglob("optimizer.pt")]
    assert not kept, "what may hold code is left where it was"

    set_note("found", 1, "For names.\nNot for numbers.")
    set_alias("found", 1, "champion")
    set_alias("found", 1, "champion")
    delete_alias("found", "champion")
    [row] = list_adapters("found")
    assert row.note == "For names.\nNot for numbers." and row.aliases == ()
    assert sorted((turn.alias, turn.got) for turn in row.turns) == [("champion", False), ("champion", True)]

    run = Run(row.run_id)
    one = {"label": "found/1", "folder": "found-1", "name": "found", "version": 1, "metrics": {"exact": 50.0}}
    gone = one | {"name": "away"}
    told = {"dataset": ["a", "b*"], "rows": 2, "versions": [{**one, "label": "base", "name": ""}, one, gone]}
    (run.folder / "output" / RESULTS).write_text(json.dumps(told))
    tell_versions(open_store(), run)
    tell_versions(open_store(), run)
    [row] = list_adapters("found")
    [measured] = row.evaluations
    assert (measured.dataset, measured.rows, measured.run_id) == ("a,b*", 2, run.id)
    assert measured.metrics == {"exact": 50.0} == measured.base


def test_what_does_not_fit_is_refused_in_one_sentence(foreign: Path) -> None:
    assert of_import(config_of(foreign)) == []
    other = tiny.model(foreign.parent / "other", hidden=64)
    [wrong] = of_import(config_of(foreign, model_name_or_path=str(other)))
    assert "was trained on another model" in wrong.sentence
    [missing] = of_import(config_of(foreign.parent / "model"))
    assert "holds no adapter_config.json" in missing.sentence
    settings = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    [unnamed] = of_import(config_of(foreign))
    assert "does not name its base model" in unnamed.sentence


def test_texts_of_data_stay_texts_in_the_picture() -> None:
    row = AdapterRow(
        'a"]; evil [label="x', 2, base="/some/where/base", datasets=('b\\"c',), aliases=("champion",),
        evaluations=(Measured("d"),),
    )  # fmt: skip
    drawn = dot(row, [row, AdapterRow(row.name, 1)])
    assert '"a\\"]; evil [label=\\"x"' in drawn and '"b\\\\\\"c"' in drawn and "/some/where" not in drawn
    assert "v1" in drawn and '"version 2 champion"' in drawn and "v2 -> e0;" in drawn
