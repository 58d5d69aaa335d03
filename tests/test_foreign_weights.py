"""Weights of others: an adapter that does not belong is refused with the reason, and no pickle is ever opened."""

from __future__ import annotations

import ast
import io
import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_stages import config_of, trained
from transformers import AutoModelForCausalLM

from tuner import worker
from tuner.config.knobs import ConfigError
from tuner.engine import adapters
from tuner.plan.preflight import problems
from tuner.runs import checkpoints, reasons
from tuner.tensors import BrokenWeights, header

ROOT = Path(__file__).parents[1]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("foreign")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        tiny.model(home / "model", hidden=32)
        tiny.model(home / "wide", hidden=64)
        tiny.model(home / "deep", hidden=32, layers=4)
        tiny.data(home / "data")
        for base in ("model", "wide", "deep"):
            settings = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
            get_peft_model(base_of(home, base), settings).save_pretrained(home / f"for-{base}")
        yield home


def base_of(home: Path, name: str = "model") -> Any:
    return AutoModelForCausalLM.from_pretrained(home / name)


def changed(studio: Path, name: str, tensors: dict[str, torch.Tensor] | bytes) -> Path:
    """The fitting adapter with other weights."""
    folder = studio / name
    shutil.copytree(studio / "for-model", folder, dirs_exist_ok=True)
    if isinstance(tensors, bytes):
        (folder / WEIGHTS).write_bytes(tensors)
    else:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def said_before(adapter: Path) -> str:
    """What is said of it before anything is loaded."""
    config = config_of("sft", adapter_name_or_path=str(adapter))
    return " ".join(p.sentence for p in problems(config) if p.knob == "adapter_name_or_path")


def test_an_adapter_that_belongs_is_taken(studio: Path) -> None:
    assert said_before(studio / "for-model") == ""
    put = adapters.put_on(base_of(studio), studio / "for-model", trainable=True)
    assert any(p.requires_grad for p in put.parameters())


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "holds no weights"),
        (b"", "is not a safetensors file"),
        ((10 * 2**30).to_bytes(8, "little") + b"{", "is not a safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "is not a safetensors file"),
        ((80_000).to_bytes(8, "little") + b"[" * 80_000, "is not a safetensors file"),
    ],
)
def test_an_adapter_without_weights_is_refused_before_anything_is_loaded(
    studio: Path, tensors: Any, said: str
) -> None:
    assert said in said_before(changed(studio, "broken", tensors))


def test_an_adapter_of_another_size_is_refused_before_anything_is_loaded(studio: Path) -> None:
    said = said_before(studio / "for-wide")
    assert "was trained on another model" in said and "name the model it was trained on" in said
    with pytest.raises(ConfigError, match="was not trained on this model"):
        adapters.put_on(base_of(studio), studio / "for-wide")


def test_an_adapter_of_a_deeper_model_is_refused(studio: Path) -> None:
    with pytest.raises(ConfigError, match="layers that this model does not have"):
        adapters.put_on(base_of(studio), studio / "for-deep")


def test_an_adapter_that_brings_less_than_it_announces_is_refused(studio: Path) -> None:
    half = {n: t for n, t in load_file(studio / "for-model" / WEIGHTS).items() if "layers.0" in n}
    with pytest.raises(ConfigError, match="brings no weights for 4 of the parts it announces"):
        adapters.put_on(base_of(studio), changed(studio, "half", half))
    with pytest.raises(ConfigError, match="brings no weights for 8 of the parts"):
        adapters.put_on(base_of(studio), changed(studio, "none", {}))


def test_the_base_that_an_adapter_names_is_not_asked_for(studio: Path) -> None:
    folder = changed(studio, "named", load_file(studio / "for-model" / WEIGHTS))
    described = json.loads((folder / "adapter_config.json").read_text())
    for base in ("/etc", "http://127.0.0.1:1/model", "../../etc"):
        described["base_model_name_or_path"] = base
        (folder / "adapter_config.json").write_text(json.dumps(described))
        assert adapters.put_on(base_of(studio), folder)


@pytest.mark.parametrize("rank", [8, 10**9])
def test_a_rank_that_its_weights_do_not_have_is_refused(studio: Path, rank: int) -> None:
    folder = changed(studio, "ranked", load_file(studio / "for-model" / WEIGHTS))
    described = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(described | {"r": rank}))
    assert f"says rank {rank} in adapter_config.json, but its weights have rank 4" in said_before(folder)


def test_a_header_that_lies_about_its_length_is_not_read(tmp_path: Path) -> None:
    liar = tmp_path / "liar.safetensors"
    liar.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(BrokenWeights):
        header(liar)


# --- pickles


class Payload:
    """Opening it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def saved(studio: Path) -> Path:
    """The folder of checkpoint-2 of a run of four steps."""
    config = config_of("sft", max_steps=2, save_strategy="steps", save_steps=2)
    live, _ = trained(config, "whole")
    return checkpoints.of(live.run)[-1]


@pytest.mark.parametrize("planted", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_planted_in_a_checkpoint_is_never_opened(studio: Path, saved: Path, planted: str) -> None:
    marker = studio / f"opened-{planted}"
    evil = studio / "evil" / planted.split(".")[0] / "checkpoint-2"
    shutil.copytree(saved, evil)
    assert (evil / planted).is_file(), [p.name for p in evil.iterdir()]
    (evil / planted).write_bytes(pickle.dumps(Payload(marker)))
    (evil / checkpoints.MANIFEST).unlink()  # as another tool's, which have none
    config = config_of("sft", max_steps=4, resume_from_checkpoint=str(evil))
    with pytest.raises(pickle.UnpicklingError) as refused:
        trained(config, f"resumed-{planted}")
    assert not marker.exists()
    assert reasons.from_exception(refused.value, {}).code == "unsafe_file"


def test_the_workers_torch_opens_no_pickle_even_where_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, evil = tmp_path / "opened", tmp_path / "evil.bin"
    evil.write_bytes(pickle.dumps(Payload(marker)))
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")  # the variables are as they were afterwards
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    worker.only_tensors()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(evil, weights_only=False)
    assert not marker.exists()
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    worker.only_tensors("ds.json")  # its own checkpoints are pickles; and this shows that the payload works
    with suppress(RuntimeError):  # what follows is no file of torch's
        torch.load(evil, weights_only=False)
    assert marker.exists()


def test_a_registered_adapter_runs_no_code_unasked(studio: Path) -> None:
    """Even where the run that trained it was trusted: whoever loads it says so anew."""
    import mlflow

    from tuner.config.config import make
    from tuner.tracking import adapters as registry
    from tuner.tracking import store
    from tuner.tracking.mirror import sync
    from tuner.tracking.runs import create_run

    marker, base = studio / "imported", studio / "own-code"
    shutil.copytree(studio / "model", base)
    described = json.loads((base / "config.json").read_text())
    described |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    }
    (base / "config.json").write_text(json.dumps(described))
    (base / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nraise OSError('it ran')\n")
    values = {"model_name_or_path": str(base), "dataset": "chat", "trust_remote_code": True}
    run = create_run(make(values), "trusted once")
    sync(run)
    row = registry.register(run, studio / "for-model", base=str(base), name="trusted")
    uri = f"models:/{row.name}/{row.version}"
    with store.as_default():
        with pytest.raises(ValueError, match="brings Python files of its own"):
            mlflow.pyfunc.load_model(uri)
        assert not marker.exists()
        with pytest.raises(OSError, match="it ran"):
            mlflow.pyfunc.load_model(uri, model_config={"trust_remote_code": True})
        assert marker.exists()


def test_the_index_of_a_checkpoint_in_pieces_holds_descriptions_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import filesystem

    from tuner.engine import pieces

    monkeypatch.setattr(filesystem, "pickle", filesystem.pickle)
    kept = {"model": {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}, "step": 3}
    pieces.only_descriptions()
    checkpoint.save(kept, checkpoint_id=tmp_path / "mine")
    found = {"model": {"a": torch.zeros(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}, "step": 0}
    checkpoint.load(found, checkpoint_id=tmp_path / "mine")
    assert torch.equal(found["model"]["a"], kept["model"]["a"]) and found["step"] == 3
    marker = tmp_path / "opened"
    (tmp_path / "mine" / ".metadata").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(checkpoint.api.CheckpointException, match="no part of a checkpoint's description"):
        checkpoint.load(found, checkpoint_id=tmp_path / "mine")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["io.BytesIO", "Path", "BytesIO"])
def test_what_a_module_of_descriptions_has_imported_is_no_description(name: str) -> None:
    from tuner.engine.pieces import FROM, _Descriptions

    text = [FROM[1].encode(), name.encode()]
    asks = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(part)]) + part for part in text) + b"\x93."
    with pytest.raises((pickle.UnpicklingError, AttributeError)):
        _Descriptions(io.BytesIO(asks)).load()


FORBIDDEN = {"pickle", "cPickle", "joblib", "cloudpickle", "dill", "shelve", "marshal", "pandas.read_pickle"}


def _reads(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("load", "read_pickle")
    )


def test_no_line_of_the_studio_opens_a_pickle() -> None:
    for path in (ROOT / "tuner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = (path, getattr(node, "lineno", 0))
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "") not in FORBIDDEN, where
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                literal = isinstance(node.value, ast.Constant) and node.value.value is True
                assert not literal, f"{path.name} trusts unasked"
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in FORBIDDEN
            ):
                # What torch raises; and the one place where a pickle that torch opens is kept to descriptions.
                known = {"Unpickler", "dump", "dumps"} if path.name == "pieces.py" else set()
                assert node.attr in known | {"UnpicklingError"}, where
            if _reads(node):
                called = ast.unparse(node.func)
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if called == "torch.load":
                    assert given.get("weights_only") == "True", where
                if called.endswith((".load", ".read_pickle")) and called.startswith(("np.", "numpy.", "pd.")):
                    assert given.get("allow_pickle") == "False", where
