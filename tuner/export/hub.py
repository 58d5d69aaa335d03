"""An export uploaded to the hub, with the token that the environment has."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import HfApi

from tuner.jobs.exporting import RECORD


def push(folder: Path, name: str) -> str:
    """Upload a folder to a private repository of that name, made if it is missing; its address.

    HF_ENDPOINT moves it to another hub, HF_TOKEN allows it.
    """
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN"))
    address = api.create_repo(name, private=True, exist_ok=True)
    api.upload_folder(
        repo_id=name, folder_path=folder, ignore_patterns=[RECORD], commit_message="Export of tuner"
    )
    return str(address)
