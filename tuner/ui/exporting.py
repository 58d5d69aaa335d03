"""Taking a version out of the studio: in which form and where to, and on the run's page what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import streamlit as st

from tuner import paths
from tuner.config.export import FLOATS, WRITTEN, ExportConfig
from tuner.jobs import exporting
from tuner.runs.run import Run
from tuner.text.lookup import mark, tr
from tuner.tracking.adapters import AdapterRow
from tuner.ui import theme, writes
from tuner.ui.words import count, duration, number, place, safe, safe_lines, size

FORMS = {
    "merged": mark("Merged model (safetensors)"),
    "gguf": mark("GGUF, for llama.cpp and Ollama"),
    "lora_gguf": mark("LoRA as GGUF, for a base that is there"),
    "adapter": mark("Zip of the adapter"),
    "bnb": mark("Merged, in 4 bits (bitsandbytes)"),
    "torchao": mark("Merged, in 8 bits (torchao)"),
}
K_QUANTS = ("q6_k", "q5_k_m", "q4_k_m", "q3_k_m")
TYPES = {"merged": ("auto", *FLOATS), "lora_gguf": ("auto", *FLOATS), "gguf": ("auto", *WRITTEN)}
FOLDER = "exports"
"""Where exports go in a studio, unless another folder is typed."""


# --- from a version's card


def offer(row: AdapterRow) -> None:
    """The fields of an export, what it will take or what stands against it, and the button that queues it."""
    key = f"{row.name}-{row.version}"
    form = st.selectbox(
        tr("Form"), list(FORMS), format_func=lambda form: tr(FORMS[form]), key=f"export-form-{key}"
    )
    kinds = TYPES.get(form, ("auto",))
    if form == "gguf" and exporting.quantizer():
        kinds = (*kinds, *K_QUANTS)
    kind = st.selectbox(
        tr("Number type"),
        kinds,
        key=f"export-type-{key}-{form}",
        disabled=len(kinds) == 1,
        help=tr("auto keeps the model's own; q8_0 halves it. Types with k need llama.cpp's llama-quantize."),
    )
    usual = f"{FOLDER}/{paths.slug(row.name)}-{row.version}-{form}"
    folder = st.text_input(
        tr("Folder"), usual, key=f"export-folder-{key}-{form}", help=tr("From the studio's own folder.")
    )
    config = _config(row, form, kind, folder)
    found = exporting.problems(config)
    if any("export_replace" in problem.mend for problem in found) and st.checkbox(
        tr("Replace the earlier export"), key=f"export-replace-{key}-{form}"
    ):
        config = config.model_copy(update={"export_replace": True})
        found = exporting.problems(config)
    for problem in found:
        st.caption(f":orange[:material/warning: {safe(problem.sentence)}]")
    if not found:
        st.caption(safe(exporting.told(exporting.estimate(config))))
    if st.button(
        tr("Export"),
        key=f"export-{key}",
        type="primary",
        icon=":material/ios_share:",
        **writes.locked(disabled=bool(found)),
    ):
        _launch(config, key)
    if run_id := st.session_state.get(f"exported-{key}"):
        st.page_link(
            "pages/runs.py",
            label=tr("Watch the export"),
            icon=":material/monitoring:",
            query_params={"run": run_id},
        )


def _config(row: AdapterRow, form: str, kind: str, folder: str) -> ExportConfig:
    values: dict[str, Any] = {"export_format": form, "export_outtype": kind, "export_dir": folder.strip()}
    return ExportConfig(
        model_name_or_path=place(row.base) or None,
        adapter_name_or_path=(f"{row.name}/{row.version}",),
        **values,
    )


def _launch(config: ExportConfig, key: str) -> None:
    try:
        st.session_state[f"exported-{key}"] = writes.submit(config).id
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")


# --- on the run's page


def made(run: Run) -> Mapping[str, Any] | None:
    """What a run exported; None for a run that exported nothing, or not yet."""
    with suppress(OSError, ValueError):
        read = json.loads((run.folder / "output" / exporting.RECORD).read_text(encoding="utf-8"))
        return read if isinstance(read, dict) else None
    return None


def shown(record: Mapping[str, Any]) -> None:
    """The files with their sizes, where they lie, and three prompts answered before and after."""
    files = list(record.get("files") or [])
    total = sum(int(file["size"]) for file in files)
    st.caption(
        tr(
            "{files}, {total}, in {record}.",
            files=count(len(files), "file"),
            total=size(total),
            record=duration(record.get("seconds")),
        )
    )
    st.code(str(record.get("folder")), language=None, wrap_lines=True)
    rows = [{"File": file["name"], "Size": size(int(file["size"]))} for file in files]
    theme.frame(rows, hide_index=True, height="content")
    if seen := record.get("tokenizer"):
        st.caption(_tokens(seen))
    if answers := record.get("answers"):
        _answers(answers)


def _tokens(seen: Mapping[str, Any]) -> str:
    if not seen["differ"]:
        return tr(
            ":material/check: llama.cpp reads all {texts} texts as the same tokens.", texts=seen["texts"]
        )
    return tr(
        ":orange[:material/warning: llama.cpp reads {differ} of {texts} texts as other tokens.]",
        differ=seen["differ"],
        texts=seen["texts"],
    )


def _answers(rows: list[Mapping[str, Any]]) -> None:
    same = sum(bool(row["same"]) for row in rows)
    st.markdown(tr("**Answers before and after** · {same} of {number} the same", same=same, number=len(rows)))
    for row in rows:
        with theme.card(f"row-answer-{row['prompt']}", gap="xsmall"):
            st.caption(safe(row["prompt"]))
            left, right = st.columns(2, gap="medium")
            left.markdown(tr(":gray[Before]\n\n{source}", source=safe_lines(row["source"])))
            right.markdown(tr(":gray[After]\n\n{exported}", exported=safe_lines(row["exported"])))
            if row["difference"] is not None:
                st.caption(
                    tr(
                        "Log probabilities of the most likely first tokens differ by at most {difference}.",
                        difference=number(row["difference"]),
                    )
                )
