"""The numbers of LLaMA-Factory's `do_predict` and `scripts/eval_bleu_rouge.py`, under their own names.

Its BLEU-4 is NLTK's of single characters, smoothed by method 3, and its ROUGE that of rouge_chinese over jieba's words,
each the mean over the rows, times a hundred (LLaMA-Factory 0.9.5, src/llamafactory/train/sft/metric.py).
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence

LIBRARIES = ("nltk", "jieba", "rouge_chinese")
ROUGE = ("rouge-1", "rouge-2", "rouge-l")


def available() -> bool:
    """Whether the libraries that they are made of are installed (the extra `llamafactory`)."""
    return all(importlib.util.find_spec(name) for name in LIBRARIES)


def peer_scores(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """`llamafactory/bleu-4` and `llamafactory/rouge-*`, 0 to 100; empty where there is no answer."""
    rows = [_of_row(said, right) for said, right in zip(answers, expected, strict=True)]
    if not rows:
        return {}
    return {f"llamafactory/{name}": round(sum(row[name] for row in rows) / len(rows), 4) for name in rows[0]}


def _of_row(said: str, right: str) -> dict[str, float]:
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    jieba.setLogLevel(logging.WARNING)
    words = [" ".join(jieba.cut(text)) for text in (said, right)]
    rouge = dict.fromkeys(ROUGE, 0.0)
    if all(text.split() for text in words):
        scores = Rouge().get_scores(*words)[0]
        rouge = {name: round(100 * scores[name]["f"], 4) for name in ROUGE}
    bleu = sentence_bleu([list(right)], list(said), smoothing_function=SmoothingFunction().method3)
    return {"bleu-4": round(100 * float(bleu), 4), **rouge}
