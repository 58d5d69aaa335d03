"""Three prompts, answered by the model before it is exported and by what came out, with the difference in figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from tuner.export.source import Exported

PROMPTS = ("Hello! Who are you?", "Where does the sun rise?", "Write one sentence about the sea.")
LONGEST = 24  # tokens of an answer: enough to see that it is the same, few enough for a large model on a CPU
LIKELIEST = 20
"""The next tokens whose log probabilities are compared."""


@dataclass(frozen=True)
class Answer:
    """What one prompt got: the tokens, and the log probabilities of the likeliest first ones."""

    ids: list[int]
    first: Mapping[int, float]


def prompts(what: Exported) -> list[list[int]]:
    """The three prompts as tokens, in the model's own chat template where it has one."""
    return [_rendered(what.tokenizer, text) for text in PROMPTS]


def _rendered(tokenizer: Any, text: str) -> list[int]:
    if not tokenizer.chat_template:
        return list(tokenizer(text)["input_ids"])
    said = [{"role": "user", "content": text}]
    shown = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(shown, add_special_tokens=False)["input_ids"])


def of_model(model: PreTrainedModel, asked: Sequence[list[int]], stops: Sequence[int]) -> list[Answer]:
    """The likeliest answers of a model that transformers runs."""
    model.eval()
    return [_answered(model, ids, stops) for ids in asked]


@torch.no_grad()
def _answered(model: PreTrainedModel, ids: list[int], stops: Sequence[int]) -> Answer:
    rows = torch.tensor([ids], device=model.device)
    logps = model(input_ids=rows).logits[0, -1].double().log_softmax(-1)
    top = logps.topk(min(LIKELIEST, logps.shape[-1]))
    made = model.generate(
        input_ids=rows,
        attention_mask=torch.ones_like(rows),
        max_new_tokens=LONGEST,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=list(stops) or None,
        pad_token_id=stops[0] if stops else 0,
        use_cache=True,
    )
    first = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Answer(made[0, len(ids) :].tolist(), first)


def compared(what: Exported, source: Sequence[Answer], made: Sequence[Answer]) -> list[dict[str, Any]]:
    """The answers side by side, for export.json. `difference` is the largest one between the log probabilities of the
    likeliest first tokens; None where there is none to compare."""
    rows = zip(PROMPTS, source, made, strict=True)
    return [
        {
            "prompt": prompt,
            "source": what.tokenizer.decode(before.ids, skip_special_tokens=True),
            "exported": what.tokenizer.decode(after.ids, skip_special_tokens=True),
            "same": before.ids == after.ids,
            "difference": _difference(before.first, after.first),
        }
        for prompt, before, after in rows
    ]


def _difference(before: Mapping[int, float], after: Mapping[int, float]) -> float | None:
    both = before.keys() & after.keys()
    return max(abs(before[token] - after[token]) for token in both) if both else None
