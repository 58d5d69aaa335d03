"""A second opinion on rows: ids and labels of this studio against LLaMA-Factory's own, template by template.

    python tests/peers/rows.py --llamafactory /path/to/python [--template qwen ...] [--all] [--rows 40]

The other python has `pip install llamafactory==0.9.5` in an environment of its own. A table says for each template and set how
many rows are equal; every difference has to be one of `INTENDED`, which docs/differences.md explains. Exit code 1 otherwise.
Minutes long, run by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from data_world import PATTERN, REAL, TEXT  # noqa: E402

from tuner.config.config import make  # noqa: E402
from tuner.config.knobs import ConfigError  # noqa: E402
from tuner.data.encode import MASKED  # noqa: E402
from tuner.data.prepare import prepare  # noqa: E402
from tuner.data.templates import names, table  # noqa: E402
from tuner.data.tokens import Tokenizer, load_tokenizer  # noqa: E402

NAMED = (
    "default", "qwen", "llama2", "llama3", "chatml", "mistral", "gemma", "deepseek", "glm4", "phi", "yi", "intern2",
    "alpaca", "vicuna", "zephyr", "qwen3", "qwen3_nothink",
)  # fmt: skip
MARKUP = r"<\|[^<>|\s]+\|?>|<\w+\|>|</?[\w:]+>|<｜[^<>｜]+｜>|\[\|?/?[A-Z_a-z]+\|?\]|◁/?\w+▷"
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}  # fmt: skip
TOOL = {
    "name": "search",
    "description": "Finds pages.",
    "parameters": {"type": "object", "properties": {"q": {"type": "string", "description": "words"}}, "required": ["q"]},
}  # fmt: skip


def _turns(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


OWN: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "turns": (
        {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": TAGS},
        [
            {"messages": _turns("Hello there.", "Hi!", "How are you?", "Fine, thanks.", "Good.", "Bye.")},
            {"messages": [{"role": "system", "content": "Be brief."}, *_turns("1+1?", "2", "2+2?", "4")]},
            {"messages": _turns("What is {{name}}?", "It's \"so\"\nand\n\nso.", "你好", "你好，世界。")},
        ],
    ),
    "thoughts": (
        {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": TAGS},
        [
            {"messages": _turns("1+1?", "<think>\nadd\n</think>\n\n2", "2+2?", "<think>\nadd again\n</think>\n\n4")},
            {"messages": _turns("1+1?", "<think>\nadd\n</think>\n\n2", "2+2?", "4")},
        ],
    ),
    "tools": (
        {"formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "tools"}},
        [
            {
                "tools": json.dumps([TOOL]),
                "conversations": [
                    {"from": "human", "value": "Find the weather."},
                    {"from": "function_call", "value": '{"name": "search", "arguments": {"q": "weather"}}'},
                    {"from": "observation", "value": '{"found": 1}'},
                    {"from": "gpt", "value": "It is fine."},
                ],
            },
            {
                "tools": json.dumps([TOOL, {**TOOL, "name": "look"}]),
                "system": "Be brief.",
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello."},
                    {"from": "human", "value": "Find both."},
                    {
                        "from": "function_call",
                        "value": '[{"name": "search", "arguments": {"q": "a"}}, {"name": "look", "arguments": {"q": "ü"}}]',
                    },
                    {"from": "observation", "value": "one"},
                    {"from": "gpt", "value": "Done."},
                ],
            },
        ],
    ),
}  # fmt: skip
OWN["tools"][0]["columns"]["system"] = "system"


class Case(NamedTuple):
    """One set under some knobs."""

    name: str
    stage: str
    dataset: str
    knobs: dict[str, Any] = {}


CASES = (
    Case("alpaca", "sft", "alpaca_en_demo"),
    Case("identity", "sft", "identity"),
    Case("turns", "sft", "turns"),
    Case("turns, mask_history", "sft", "turns", {"mask_history": True}),
    Case("turns, train_on_prompt", "sft", "turns", {"train_on_prompt": True}),
    Case("thoughts", "sft", "thoughts"),
    Case("thoughts, mask_history", "sft", "thoughts", {"mask_history": True}),
    Case("thoughts, off", "sft", "thoughts", {"enable_thinking": False}),
    Case("tools", "sft", "tools"),
    Case("glaive", "sft", "glaive_toolcall_en_demo"),
    Case("dpo", "dpo", "dpo_en_demo"),
    Case("kto", "kto", "kto_en_demo"),
)
ANY = "*"
PUBLIC_TEXT = "the public template's text"
PUBLIC_TOOLS = "the public template's tools"
INTENDED: tuple[tuple[str, str, str], ...] = (
    # (templates, cases, the heading of docs/differences.md that says why)
    ("llama2 llama2_zh deepseek vicuna zephyr llava llava_next llava_next_video video_llava", ANY, PUBLIC_TEXT),
    ("glm4_moe glm4_5v glm4_7 glm4v glmz1 aeva ernie_vl deepseekcoder phi_small", ANY, PUBLIC_TEXT),
    ("gemma gemma2 gemma3 gemma3n llama3", "kto;dpo;alpaca", PUBLIC_TEXT),
    (ANY, "glaive", "no tools"),
    ("glm4 chatglm3 glm_ocr", "tools", "several calls at once"),
    ("glm4 chatglm3 glm_ocr", "turns, train_on_prompt", "refused by both"),
    ("glm4 chatglm3 glm_ocr", "turns, mask_history;thoughts, mask_history", "masked history is masked whole"),
    ("llama3 llama4 mllama llava_next_llama3", "tools", PUBLIC_TOOLS),
    ("mistral ministral ministral3 mistral_small pixtral llava_next_mistral llava_next_video_mistral", "tools", PUBLIC_TOOLS),
    ("qwen3 qwen3_nothink qwen3_5 qwen3_5_nothink qwen3_6 qwen3_omni qwen3_omni_nothink", "tools", PUBLIC_TOOLS),
    ("qwen3_vl qwen3_vl_nothink keye_vl lfm2 lfm2_vl phi4_mini", "tools", PUBLIC_TOOLS),
    ("bailing_v2 gemma4 gemma4n minimax1 minimax2 seed_oss", "tools", "tool formats not written"),
    ("hy_dense_1_8b hy_dense_7b moss_vl", ANY, "names newer than 0.9.5"),
)  # fmt: skip


def intended(template: str, case: str) -> str | None:
    """Why a template's rows part from theirs in a case; None where they must not."""
    for templates, cases, why in INTENDED:
        if (templates == ANY or template in templates.split()) and (cases == ANY or case in cases.split(";")):
            return why
    return None


def catalog(folder: Path) -> Path:
    """A catalog of our own sets and, where they are at hand, the other tool's demo files."""
    folder.mkdir(parents=True)
    info: dict[str, Any] = {}
    if REAL.is_dir():
        info = json.loads((REAL / "dataset_info.json").read_text(encoding="utf-8"))
        info = {k: v for k, v in info.items() if (REAL / str(v.get("file_name"))).is_file()}
        for attributes in info.values():
            (folder / attributes["file_name"]).symlink_to(REAL / attributes["file_name"])
    for name, (attributes, rows) in OWN.items():
        info[name] = {"file_name": f"{name}.json", **attributes}
        (folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


def tokenizer_folder(folder: Path, kind: str) -> Path:
    """A tokenizer that has every template's markup as special tokens: byte-level, or as sentencepiece's (`pieces`)."""
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    marks = sorted(
        {m for fields in table().values() for text in _strings(fields) for m in re.findall(MARKUP, text)}
    )
    special = ["<unk>", "<s>", "</s>", *(m for m in marks if m not in ("<unk>", "<s>", "</s>"))]
    stops = {stop for fields in table().values() for stop in fields.get("stop", ())}
    special = [s for s in special if not re.match("</?(t(ool|hin)|argu|function|param|IMP)", s)]
    special += sorted(stops.difference(special)) + ["sop"]
    if kind == "pieces":
        backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(
            vocab_size=900, special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))], show_progress=False
        )  # fmt: skip
        backend.train_from_iterator(" ".join(TEXT).split(" ") * 4, trainer)
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        backend = Backend(models.BPE())
        split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        backend.train_from_iterator(TEXT * 4, trainer)
    backend.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _strings(part)


class Theirs:
    """The other tool, asked through a pipe."""

    def __init__(self, python: str):
        script = Path(__file__).with_name("theirs_rows.py")
        popen = partial(
            subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.process = popen([python, str(script)], text=True)

    def rows(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


def sides(row: Mapping[str, Any]) -> dict[str, tuple[list[int], list[int]]]:
    """Ids and labels of a row, in whichever tool's columns."""
    if "chosen_input_ids" in row:
        return {s: (row[f"{s}_input_ids"], row[f"{s}_labels"]) for s in ("chosen", "rejected")}
    if "chosen_ids" in row:
        return {s: _after(row["prompt_ids"], row[f"{s}_ids"]) for s in ("chosen", "rejected")}
    if "completion_ids" in row:
        return {"text": _after(row["prompt_ids"], row["completion_ids"])}
    return {"text": (list(row["input_ids"]), list(row["labels"]))}


def _after(prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
    return [*prompt, *answer], [MASKED] * len(prompt) + list(answer)


def ours(
    folder: Path, data: Path, template: str, case: Case, rows: int, tokenizer: Tokenizer
) -> list[Any] | str:
    """Our rows, or the sentence that refuses them."""
    try:
        config = make(
            {
                "model_name_or_path": str(folder), "stage": case.stage, "dataset": case.dataset, "dataset_dir": str(data),
                "template": template, "cutoff_len": 100_000, "max_samples": rows, **case.knobs,
            }
        )  # fmt: skip
        return [sides(row) for row in prepare(config, tokenizer).train]
    except ConfigError as refused:
        return str(refused)


def compare(
    template: str, case: Case, mine: list[Any] | str, theirs: dict[str, Any], tokenizer: Tokenizer
) -> str:
    """One cell of the table: "equal n", or the first difference."""
    if isinstance(mine, str) or "error" in theirs:
        said = mine if isinstance(mine, str) else f"{len(mine)} rows"
        return f"ours: {said[:160]} | theirs: {theirs.get('error', str(len(theirs.get('rows', ()))) + ' rows')[:160]}"
    other = [sides(row) for row in theirs["rows"]]
    if len(mine) != len(other):
        return f"ours {len(mine)} rows, theirs {len(other)}"
    for number, (a, b) in enumerate(zip(mine, other, strict=True)):
        for side in a:
            if a[side][0] != b[side][0]:
                return f"ids of row {number} {side}: {_parting(a[side][0], b[side][0], tokenizer)}"
            if a[side][1] != b[side][1]:
                return f"labels of row {number} {side}: {_parting(a[side][1], b[side][1], tokenizer)}"
    return f"equal {len(mine)}"


def _parting(mine: list[int], other: list[int], tokenizer: Tokenizer) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), min(len(mine), len(other))
    )

    def text(ids: list[int]) -> str:
        return "".join("·" if i == MASKED else tokenizer.decode([i]) for i in ids[max(at - 6, 0) : at + 14])

    return f"{text(mine)!r} / {text(other)!r}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llamafactory", required=True, help="the python of its environment")
    parser.add_argument("--template", nargs="*", help="these alone")
    parser.add_argument("--all", action="store_true", help="every template's name")
    parser.add_argument("--rows", type=int, default=40, help="rows of each set")
    parser.add_argument("--case", nargs="*", help="these alone")
    parser.add_argument("--tokenizer", choices=("bytes", "pieces"), nargs="*", default=["bytes"])
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="rows-"))
    data = catalog(root / "data")
    known = json.loads((data / "dataset_info.json").read_text(encoding="utf-8"))
    theirs = Theirs(given.llamafactory)
    surprises = 0
    for kind in given.tokenizer:
        folder = tokenizer_folder(root / kind, kind)
        tokenizer = load_tokenizer(folder)
        for template in given.template or (names() if given.all else NAMED):
            for case in CASES:
                if case.dataset not in known or (given.case and case.name not in given.case):
                    continue
                arguments = {
                    "dataset": case.dataset, "dataset_dir": str(data), "template": template, "cutoff_len": 100_000,
                    "max_samples": given.rows, "overwrite_cache": True, **case.knobs,
                }  # fmt: skip
                stage = "rm" if case.stage == "dpo" else case.stage  # as its dpo workflow asks for them
                order = {"folder": str(folder), "stage": stage, "data": arguments}
                mine = ours(folder, data, template, case, given.rows, tokenizer)
                cell = compare(template, case, mine, theirs.rows(order), tokenizer)
                why = intended(template, case.name)
                equal = cell.startswith("equal")
                surprises += not equal and why is None
                print(
                    f"{kind:7} {template:16} {case.name:24} {cell}{'' if equal or not why else f'  [{why}]'}",
                    flush=True,
                )
    print(json.dumps({"surprises": surprises}))
    return bool(surprises)


if __name__ == "__main__":
    sys.exit(main())
