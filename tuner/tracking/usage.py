"""The code that loads a registered adapter outside the studio, with this studio's own paths in it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuner import paths
from tuner.config.kinds import KINDS
from tuner.config.vision import takes_pictures
from tuner.runs.run import Run
from tuner.tracking.adapter_rows import AdapterRow
from tuner.tracking.store import tracking_uri

QUESTION = "Where does Mia live?"
ANSWER = "In Saltbay."


def with_mlflow(row: AdapterRow) -> str:
    """Base and adapter as one model that answers, by name and version; empty for a reward model, which does not."""
    if _scores(row):
        return ""
    return f"""import mlflow

mlflow.set_tracking_uri({_quoted(tracking_uri())})
model = mlflow.pyfunc.load_model({_quoted(f"models:/{row.name}/{row.version}")})
print(model.predict({{"prompt": [{_quoted(QUESTION)}]}}))
"""


def _scores(row: AdapterRow) -> bool:
    """Whether what was trained gives a number instead of text."""
    return row.stage in KINDS and KINDS[row.stage].scores


def with_peft(row: AdapterRow) -> str:
    """The files by themselves, with the libraries they were made with; empty where they are on a server."""
    if row.folder is None:
        return ""
    scores = _scores(row)
    adapted = (row.folder / "adapter_config.json").is_file()
    weights = _base(row) if adapted else str(row.folder)
    sees = takes_pictures(_read(Path(weights) / "config.json")) if Path(weights).is_dir() else False
    writes = "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"
    kind = "AutoModelForSequenceClassification" if scores else writes
    words = str(row.folder) if (row.folder / "tokenizer_config.json").is_file() else weights
    remote = ", trust_remote_code=True" if _trusts(row) else ""
    lines = [
        *(["from peft import PeftModel"] if adapted else []),
        f"from transformers import {kind}, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({_quoted(words)}{remote})",
        f"model = {kind}.from_pretrained({_quoted(weights)}{', num_labels=1' if scores else ''}{remote})",
        *([f"model = PeftModel.from_pretrained(model, {_quoted(str(row.folder))})"] if adapted else []),
        *_asked(words, scores),
    ]
    return "\n".join(lines) + "\n"


def _asked(words: str, scores: bool) -> list[str]:
    """What is asked of the model; `words` is where its tokenizer is."""
    turns = [f'{{"role": "user", "content": {_quoted(QUESTION)}}}']
    if scores:
        turns.append(f'{{"role": "assistant", "content": {_quoted(ANSWER)}}}')
    talk = f"[{', '.join(turns)}]"
    if not _talks(words):
        ids = [f'ids = tokenizer({_quoted(QUESTION)}, return_tensors="pt").input_ids']
    else:
        ids = [
            "ids = tokenizer.apply_chat_template(",
            f"    {talk},",
            f'    add_generation_prompt={not scores}, return_tensors="pt", return_dict=True,',
            ").input_ids",
        ]
    if scores:
        return [
            *ids,
            "print(float(model.eval()(input_ids=ids).logits[0, 0]))  # the better answer's is higher",
        ]
    return [
        *ids,
        "answer = model.eval().generate(input_ids=ids, max_new_tokens=64)",
        "print(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))",
    ]


def _talks(words: str) -> bool:
    """Whether a tokenizer knows how to write a talk; one that is not on this machine is taken to."""
    folder = Path(words)
    if not folder.is_dir() or (folder / "chat_template.jinja").is_file():
        return True
    return bool(_read(folder / "tokenizer_config.json").get("chat_template"))


def _base(row: AdapterRow) -> str:
    """The base model: the folder that the adapter was trained on, or its name on the hub."""
    named = str(_read((row.folder or Path()) / "adapter_config.json").get("base_model_name_or_path") or "")
    if Path(named).is_absolute() and Path(named).is_dir():
        return named
    folder = paths.home() / row.base
    return str(folder) if folder.is_dir() else row.base


def _trusts(row: AdapterRow) -> bool:
    with suppress(ValueError):
        return bool(row.run_id and Run(row.run_id).values().get("trust_remote_code"))
    return False


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
