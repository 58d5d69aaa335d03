"""Makes what a run trained a version of a registered model.

The obvious way (mlflow.transformers.log_model) silently loses the base's weights, so an adapter is logged as a model
from code (adapter_pyfunc.py) with its files as artifact and its base by name. Registration is the last step, after the
files are where they belong and match what was trained.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tuner import paths, private
from tuner.tracking.adapter_rows import AdapterRow, list_adapters, local_folder
from tuner.tracking.checkpoints import sha256
from tuner.tracking.inputs import recorded
from tuner.tracking.ledger import mlflow_id
from tuner.tracking.run import Run
from tuner.tracking.store import as_default, database, experiment_id, explained, open_store
from tuner.tracking.weights import BrokenWeights, check_finite

CODE = Path(__file__).with_name("adapter_pyfunc.py")
# What of an output folder is the adapter: weights, their description and the tokenizer.
PARTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "README.md",
)


def register(
    run: Run,
    adapter_dir: Path,
    base: str | None = None,
    *,
    name: str | None = None,
    aliases: Iterable[str] = (),
    note: str = "",
) -> AdapterRow:
    """Register what a run trained as a new version of `name`; the same weights of a run are registered once.

    `base` and `name` default to the run's own model and name. Raises BrokenWeights where the weights are not finite or
    not there, TrackerError where MLflow cannot take them (a later sync does it then).
    """
    values = run.values()
    base = base or str(values.get("model_name_or_path") or "")
    name = model_name(name or run.name)
    parts = _parts(adapter_dir)
    weights = [path for path in parts if path.suffix == ".safetensors"]
    if not weights:
        raise BrokenWeights(f"{adapter_dir} holds no .safetensors file; there is nothing to register.")
    for path in weights:
        check_finite(path)
    files = {path.name: (path.stat().st_size, sha256(path)) for path in parts}
    request = run.folder / "adapter.json"
    request.write_text(
        json.dumps(
            {
                "adapter_dir": str(adapter_dir),
                "base": base,
                "name": name,
                "aliases": list(aliases),
                "note": note,
            }
        )
    )
    known = _registered(run, name, files)
    if known is None:
        tags = _tags(run, adapter_dir, base, files)
        with explained(BrokenWeights):
            version = _log_and_register(run, name, parts, tags, note)
            for alias in aliases:
                open_store().set_registered_model_alias(name, alias, str(version))
        known = next(row for row in list_adapters() if row.name == name and row.version == version)
    request.unlink()
    run.update(extra=run.status().extra | {"adapter": known.name, "adapter_version": known.version})
    return known


def register_pending(run: Run) -> AdapterRow | None:
    """Register what could not be while MLflow was away; None where nothing waits. Raises as `register` does."""
    request = run.folder / "adapter.json"
    if not request.exists():
        return None
    asked = json.loads(request.read_text(encoding="utf-8"))
    try:
        return register(run, Path(asked.pop("adapter_dir")), **asked)
    except BrokenWeights:
        request.unlink()  # it will not mend itself
        raise


def model_name(text: str) -> str:
    """A name that MLflow's registry takes."""
    return re.sub(r"[/:]+", "-", paths.slug(text, longest=200))


def _parts(folder: Path) -> list[Path]:
    found = {path for pattern in PARTS for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)


def _registered(run: Run, name: str, files: Mapping[str, tuple[int, str]]) -> AdapterRow | None:
    digest = weights_digest(files)
    same = (row for row in list_adapters() if row.run_id == run.id and row.name == name)
    return next((row for row in same if row.sha256 == digest and row.state == "ok"), None)


def weights_digest(files: Mapping[str, tuple[int, str]]) -> str:
    """The sha256 of the weights file; of the list of theirs where there are several."""
    found = [digest for name, (_, digest) in sorted(files.items()) if name.endswith(".safetensors")]
    if len(found) == 1:
        return found[0]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def _tags(run: Run, folder: Path, base: str, files: Mapping[str, tuple[int, str]]) -> dict[str, str]:
    described: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        described = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    targets = described.get("target_modules") or []
    inputs = [row for row in recorded(run) if row.context == "training"]
    values = run.values()
    return {
        "base": base,
        "method": str(described.get("peft_type") or values.get("finetuning_type") or "").lower(),
        "rank": str(described.get("r", "")),
        "alpha": str(described.get("lora_alpha", "")),
        "targets": targets if isinstance(targets, str) else ",".join(sorted(targets)),
        "stage": str(values.get("stage") or ""),
        "size": str(sum(size for size, _ in files.values())),
        "sha256": weights_digest(files),
        "files": json.dumps(files),
        "datasets": ",".join(row.name for row in inputs),
        "dataset_digests": ",".join(row.digest for row in inputs),
        "run_id": run.id,
    }


def _log_and_register(run: Run, name: str, parts: list[Path], tags: dict[str, str], note: str) -> int:
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    client = open_store()
    run_id = mlflow_id(run.id)
    short = {key: value for key, value in tags.items() if key != "files"}
    logged = client.create_logged_model(
        experiment_id(client), name=name, source_run_id=run_id, tags=short, model_type="adapter"
    )
    try:
        with _packed(run, parts, tags, logged.model_id) as folder:
            client.log_model_artifacts(logged.model_id, str(folder))
        if database() and (kept := local_folder(logged.artifact_location)):
            private.close(kept.parents[1])
        _verify(logged.artifact_location, tags)
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, run.status().step)])
    with suppress(MlflowException):  # it is there already
        client.create_registered_model(name)
    with as_default():
        made = client.create_model_version(
            name, source=f"models:/{logged.model_id}", run_id=run_id, tags=tags, description=note or None
        )
    return int(made.version)


@contextmanager
def _packed(run: Run, parts: list[Path], tags: dict[str, str], model_id: str) -> Iterator[Path]:
    """The adapter's files and the code that loads them, as one folder in MLflow's model format."""
    from mlflow.models import Model

    values = run.values()
    base = tags["base"]
    settings: dict[str, Any] = {"base": str(Path(base).absolute()) if _is_local(base) else base}
    # Said anew by whoever loads it: that one run was trusted is no reason to run the code on another machine.
    settings["trust_remote_code"] = False
    if values.get("model_revision", "main") != "main":
        settings["revision"] = values["model_revision"]
    with tempfile.TemporaryDirectory(dir=run.folder, prefix="adapter-") as scratch:
        files = Path(scratch) / "adapter"
        files.mkdir()
        for part in parts:
            _link(part, files / part.name)
        _save_quietly(
            path=str(Path(scratch) / "model"),
            python_model=str(CODE),
            artifacts={"adapter": str(files)},
            model_config=settings,
            signature=_signature(),
            pip_requirements=[
                f"{lib}=={importlib.metadata.version(lib)}" for lib in ("torch", "transformers", "peft")
            ],
            metadata={key: tags[key] for key in ("base", "method", "rank", "sha256", "run_id")},
            mlflow_model=Model(model_id=model_id, run_id=mlflow_id(run.id)),
        )
        yield Path(scratch) / "model"


def _save_quietly(**what: Any) -> None:
    import mlflow.pyfunc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for an input example, which would load the base model here
        mlflow.pyfunc.save_model(**what)


def _is_local(base: str) -> bool:
    return (paths.home() / base).is_dir()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copyfile(source, target)


def _signature() -> Any:
    # Without it MLflow drops the params of a call.
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec(DataType.string, "prompt")])
    params = [ParamSpec("max_new_tokens", DataType.long, 128), ParamSpec("temperature", DataType.double, 0.0)]
    return ModelSignature(inputs=text, outputs=Schema([ColSpec(DataType.string)]), params=ParamSchema(params))


def _verify(location: str, tags: Mapping[str, str]) -> None:
    """What arrived is what was trained; only where it can be read here."""
    folder = local_folder(location)
    if folder is None:
        return
    for name, (_, digest) in json.loads(tags["files"]).items():
        if sha256(folder / name) != digest:
            raise BrokenWeights(f"{folder / name} is not what was written; the disk may be full or failing.")
