"""From what the user wrote as model_name_or_path to a folder on this machine.

HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and the cache variables work as huggingface_hub documents them;
USE_MODELSCOPE_HUB=1 takes models from ModelScope instead.
"""

from __future__ import annotations

import importlib
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tuner import private
from tuner.config.config import Config
from tuner.config.models import ModelError, legacy_kind, needs_remote_code
from tuner.redact import redact
from tuner.text.lookup import tr

_CONFIG = ["config.json"]
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "vocab.txt", "merges.txt"]
_PICKLES = ["*.bin"]
_CODE = ["*.py"]
# A second copy of the same weights, in the author's own layout or for another runtime.
_IGNORED = ["consolidated*", "original/*", "*/*.safetensors", "*/*.bin"]


def token_of(config: Config) -> str | None:
    """The token of the hub that models come from; no hub is given another's."""
    return config.ms_hub_token if _switch("USE_MODELSCOPE_HUB") else config.hf_hub_token


def resolve_model(
    name: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    *,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """The folder of a model or adapter: a local one as it is, a hub id as a snapshot in the cache.

    Downloads configuration, tokenizer and safetensors; .bin shards only of the legacy formats, which are converted;
    the model's Python files only when `trust_remote_code` is set. Raises ModelError with one sentence.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(folder.resolve(), name, trust_remote_code)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ModelError(
            tr(
                "There is no folder {name}: check the path, or give a hub id like Qwen/Qwen2.5-0.5B.",
                name=name,
            )
        )
    if _switch("USE_OPENMIND_HUB"):
        raise ModelError(
            tr(
                "USE_OPENMIND_HUB is set, but the openMind hub is not supported here: unset it to use Hugging Face, or set USE_MODELSCOPE_HUB=1 for ModelScope."
            )
        )
    hub = _modelscope if _switch("USE_MODELSCOPE_HUB") else _hugging_face
    fetch = partial(hub, name, revision=revision, cache_dir=cache_dir, token=token)
    folder = fetch(patterns=_CONFIG)
    _check_code(folder, trust_remote_code)  # before gigabytes are fetched for nothing
    wanted = _FILES + (_PICKLES if legacy_kind(folder) else []) + (_CODE if trust_remote_code else [])
    folder = fetch(patterns=wanted)
    if not any(folder.glob("*.safetensors")) and not legacy_kind(folder):
        raise ModelError(
            tr(
                "{name} has no safetensors weights: choose a release that has them (.bin files can hide code, and .gguf files cannot be trained).",
                name=name,
            )
        )
    return folder


def _checked(folder: Path, name: str, trust_remote_code: bool) -> Path:
    _check_code(folder, trust_remote_code)
    pickled = any(folder.glob("pytorch_model*.bin")) or any(folder.glob("adapter_model*.bin"))
    if pickled and not any(folder.glob("*.safetensors")) and not legacy_kind(folder):
        raise ModelError(
            tr(
                "{name} keeps its weights as .bin files, which can hide code: save it again as safetensors (save_pretrained does) or take a release that has them.",
                name=name,
            )
        )
    return folder


def _check_code(folder: Path, trust_remote_code: bool) -> None:
    sentence = needs_remote_code(folder)
    if sentence and not trust_remote_code:
        raise ModelError(sentence)


def _switch(variable: str) -> bool:
    return os.environ.get(variable, "0").strip().lower() in ("1", "true", "y", "yes", "on")


def _hugging_face(
    name: str, *, patterns: list[str], revision: str | None, cache_dir: str | Path | None, token: str | None
) -> Path:
    endpoint = constants.ENDPOINT
    try:
        with private.as_the_person():  # several people may share the cache
            folder = snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                allow_patterns=patterns,
                ignore_patterns=_IGNORED,
            )
    except GatedRepoError:
        raise ModelError(
            tr(
                "{name} is only given to people who accepted its licence: do so at {endpoint}/{name}, then set HF_TOKEN (or --hf_hub_token) to your access token.",
                name=name,
                endpoint=endpoint,
            )
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            tr(
                "There is neither a folder nor, at {endpoint}, a model named {name}: check the spelling, or set HF_TOKEN (or --hf_hub_token) if it is private.",
                endpoint=endpoint,
                name=name,
            )
        ) from None
    except RevisionNotFoundError:
        raise ModelError(
            tr(
                "{name} has no revision {revision}: see the branches at {endpoint}/{name}.",
                name=name,
                revision=revision,
                endpoint=endpoint,
            )
        ) from None
    except HFValidationError:
        raise ModelError(
            tr("{name} is neither a folder nor a hub id like Qwen/Qwen2.5-0.5B.", name=name)
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(_no_network(name, endpoint, error)) from error
    return Path(folder)


def _modelscope(
    name: str, *, patterns: list[str], revision: str | None, cache_dir: str | Path | None, token: str | None
) -> Path:
    try:
        download: Any = importlib.import_module("modelscope").snapshot_download
    except (ImportError, AttributeError):
        raise ModelError(
            tr(
                "USE_MODELSCOPE_HUB is set, but the library modelscope is not installed: run `pip install modelscope`, or unset it to use Hugging Face."
            )
        ) from None
    # Its login would write the token down where it stays; an argument lasts as long as the call.
    known = {"token": token} if token else {}
    try:
        with private.as_the_person():
            folder = download(
                name,
                revision=None
                if revision == "main"
                else revision,  # ModelScope's main branch is called master
                cache_dir=str(cache_dir) if cache_dir else None,
                allow_patterns=patterns,
                ignore_patterns=_IGNORED,
                **known,
            )
    except Exception as error:  # its errors share no base class
        raise ModelError(_no_network(name, "ModelScope", error)) from error
    return Path(folder)


def _no_network(name: str, endpoint: str, error: Exception) -> str:
    lines = str(error).removeprefix("Got: ").strip().splitlines() or [type(error).__name__]
    return tr(
        "{name} is no folder on this machine, is not complete in the cache, and could not be fetched from {endpoint} ({error}): check the network or HF_ENDPOINT, or give the path of a local model.",
        name=name,
        endpoint=endpoint,
        error=redact(lines[0])[:200],
    )
