"""Runs in LLaMA-Factory's own environment: the rows it makes of data sets, one JSON line for each order on stdin.

An order is {"folder": a tokenizer's, "data": its DataArguments, "stage"}; the answer is {"rows": [...]} or {"error": ...}.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DISABLE_VERSION_CHECK", "1")
COLUMNS = (
    "input_ids", "labels", "chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels", "kto_tags",
)  # fmt: skip


def answer(order: dict[str, Any]) -> dict[str, Any]:
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.data.mm_plugin import get_mm_plugin
    from llamafactory.hparams import DataArguments, ModelArguments, TrainingArguments
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(order["folder"])
    data = DataArguments(**order["data"])
    template = get_template_and_fix_tokenizer(tokenizer, data)
    template.mm_plugin = get_mm_plugin(
        "base"
    )  # the rows hold text alone, which a picture's processor would not change
    training = TrainingArguments(output_dir=tempfile.mkdtemp(), use_cpu=True, report_to="none")
    model = ModelArguments(model_name_or_path=order["folder"])
    found = get_dataset(template, model, data, training, order["stage"], tokenizer)["train_dataset"]
    return {"rows": [{k: row[k] for k in COLUMNS if k in row} for row in found]}


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    logging.disable(logging.WARNING)
    for line in sys.stdin:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            try:
                result = answer(json.loads(line))
            except Exception as error:  # noqa: BLE001 whatever it says is the answer
                result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main()
