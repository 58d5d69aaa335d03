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

from tuner import paths, private, tensors
from tuner.runs.checkpoints import sha256
from tuner.runs.files import replace_text
from tuner.runs.inputs import recorded
from tuner.runs.run import Run
from tuner.runs.weights import BrokenWeights, check_finite
from tuner.text.lookup import tr
from tuner.tracking.adapter_rows import AdapterRow, list_adapters, local_folder
from tuner.tracking.evaluations import of_decisions
from tuner.tracking.store import (
    TrackerError,
    as_default,
    changed,
    database,
    experiment_id,
    explained,
    open_store,
    tracking_uri,
)
from tuner.tracking.sync_state import SyncState, mlflow_id

CODE = Path(__file__).with_name("adapter_pyfunc.py")
# What of an output folder is the adapter: weights, their description and the tokenizer.
PARTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_config.json",
    "config.json",
    "decision.json",
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
    base = base or str(run.values().get("model_name_or_path") or "")
    name = model_name(name or run.name)
    request, files = _request(run, adapter_dir, base, name, aliases, note)
    known = _registered(run, name, files)
    if known is None:
        if not SyncState.of(run).mlflow_id:
            raise TrackerError(tr("MLflow does not have this run yet; its adapter follows once it has."))
        tags = _tags(run, adapter_dir, base, files)
        with explained(BrokenWeights):
            model = _logged(run, request, [adapter_dir / part for part in files], tags)
            version = _version(run, request, model, tags)
            for alias in aliases:
                open_store().set_registered_model_alias(name, alias, str(version))
            changed()
        known = next(row for row in list_adapters(name) if row.version == version)
    request.done()
    run.update(adapter=known.name, adapter_version=known.version)
    return known


def ask_to_register(run: Run, adapter_dir: Path, base: str, name: str) -> None:
    """Note in the run's folder what `register_pending` is to register. Raises BrokenWeights as `register` does."""
    _request(run, adapter_dir, base, model_name(name), (), "")


Files = dict[str, tuple[int, str]]
"""The size and the sha256 of each file, by its name."""


def _request(
    run: Run, adapter_dir: Path, base: str, name: str, aliases: Iterable[str], note: str
) -> tuple[Request, Files]:
    parts = _parts(adapter_dir)
    weights = [path for path in parts if path.suffix == ".safetensors"]
    if not weights:
        raise BrokenWeights(
            tr(
                "{adapter_dir} holds no .safetensors file; there is nothing to register.",
                adapter_dir=adapter_dir,
            )
        )
    for path in weights:
        check_finite(path)
    files = {path.name: (path.stat().st_size, sha256(path)) for path in parts}
    asked = {
        "adapter_dir": str(adapter_dir),
        "base": base,
        "name": name,
        "aliases": list(aliases),
        "note": note,
    }
    return Request(run, asked, weights_digest(files)), files


class Request:
    """adapter.json: what of a run waits to be registered, and how far that has come.

    A server may fail between any two calls: the model that was made and the files that arrived there are found again, so
    that no try makes or uploads anything twice.
    """

    def __init__(self, run: Run, asked: Mapping[str, Any], digest: str):
        self.file = run.folder / "adapter.json"
        self.asked = dict(asked)
        before = _read(self.file)
        # What was made of other weights is another model's.
        kept = before if before.get("digest") == digest and before.get("tracker") == tracking_uri() else {}
        self.model: str = kept.get("model", "")
        self.uploaded: bool = kept.get("uploaded", False)
        self.digest = digest
        self.note()

    def note(self, **changes: Any) -> None:
        """Write down how far it has come."""
        for name, value in changes.items():
            setattr(self, name, value)
        progress = {"model": self.model, "uploaded": self.uploaded, "digest": self.digest}
        replace_text(self.file, json.dumps({**self.asked, **progress, "tracker": tracking_uri()}))

    def done(self) -> None:
        self.file.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def waits(run: Run) -> bool:
    """Whether a run's adapter is still to be registered."""
    return (run.folder / "adapter.json").exists()


def register_pending(run: Run) -> AdapterRow | None:
    """Register what could not be while MLflow was away; None where nothing waits. Raises as `register` does."""
    asked = _read(run.folder / "adapter.json")
    if not asked:
        return None
    try:
        return register(
            run, Path(asked["adapter_dir"]), asked["base"],
            name=asked["name"], aliases=asked["aliases"], note=asked["note"],
        )  # fmt: skip
    except BrokenWeights:
        (run.folder / "adapter.json").unlink()  # it will not mend itself
        raise


def model_name(text: str) -> str:
    """A name that MLflow's registry takes."""
    return re.sub(r"[/:]+", "-", paths.slug(text, longest=200))


def _parts(folder: Path) -> list[Path]:
    found = {path for pattern in PARTS for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)


def _registered(run: Run, name: str, files: Mapping[str, tuple[int, str]]) -> AdapterRow | None:
    digest = weights_digest(files)
    same = (row for row in list_adapters(name) if row.run_id == run.id)
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
    targets = _adapted(folder) or described.get("target_modules") or []
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


def _adapted(folder: Path) -> list[str]:
    """The last names of the modules that LoRA's weights lie on: a config names those of frozen parts too, or a pattern."""
    found = set()
    for file in sorted(folder.glob("adapter_model*.safetensors")):
        with suppress(OSError, ValueError):
            names, _ = tensors.header(file)
            found |= {name.partition(".lora_")[0].rpartition(".")[2] for name in names if ".lora_A" in name}
    return sorted(found)


def _logged(run: Run, request: Request, parts: list[Path], tags: dict[str, str]) -> str:
    """The id of the model in MLflow that holds the adapter's files; made and filled once."""
    from mlflow.entities import LoggedModelOutput

    client = open_store()
    run_id = mlflow_id(run.id)
    short = {key: value for key, value in tags.items() if key != "files"}
    if not request.model:
        name = request.asked["name"]
        made = client.create_logged_model(
            experiment_id(client), name=name, source_run_id=run_id, tags=short, model_type="adapter"
        )
        request.note(model=made.model_id)
    if not request.uploaded:
        location = client.get_logged_model(request.model).artifact_location
        with _packed(run, parts, tags, request.model) as folder:
            client.log_model_artifacts(request.model, str(folder))
        if database() and (kept := local_folder(location)):
            private.close(kept.parents[1])
        try:
            _verify(location, tags)
        except BrokenWeights:
            client.finalize_logged_model(request.model, "FAILED")
            raise
        client.finalize_logged_model(request.model, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(request.model, run.status().step)])
        request.note(uploaded=True)
    return request.model


def _version(run: Run, request: Request, model_id: str, tags: dict[str, str]) -> int:
    """The number of the registered version of a logged model; made once."""
    from mlflow.exceptions import MlflowException

    client, name = open_store(), request.asked["name"]
    with suppress(MlflowException):  # it is there already
        client.create_registered_model(name)
    # A call whose answer got lost has made it all the same.
    for version in client.search_model_versions(f"name = '{name}' and run_id = '{mlflow_id(run.id)}'"):
        if str(version.source) == f"models:/{model_id}" or version.tags.get("model_id") == model_id:
            return int(version.version)
    with as_default():
        made = client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=mlflow_id(run.id),
            model_id=model_id,  # a server refuses the source without it
            tags={**tags, **of_decisions(run), "model_id": model_id},
            description=request.asked["note"] or None,
        )
    return int(made.version)


@contextmanager
def _packed(run: Run, parts: list[Path], tags: dict[str, str], model_id: str) -> Iterator[Path]:
    """The adapter's files and the code that loads them, as one folder in MLflow's model format."""
    from mlflow.models import Model

    values = run.values()
    base = tags["base"]
    settings: dict[str, Any] = {"base": str(paths.home() / base) if _is_local(base) else base}
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
            raise BrokenWeights(
                tr("{folder} is not what was written; the disk may be full or failing.", folder=folder / name)
            )
