"""Answers to held-out prompts, written word by word and compared with the expected ones (`do_predict`)."""

from __future__ import annotations

import json
import re
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tuner.config.config import Config
from tuner.engine.live import LiveRun
from tuner.engine.picture_batches import IMAGES
from tuner.engine.setup import Start
from tuner.generate import answers as generate
from tuner.generate.request import Sampling
from tuner.text.message import message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

FILE = "generated_predictions.jsonl"
UNSPACED = re.compile(
    # Thai, Lao, Burmese, Khmer: a letter with its marks
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff][\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd"
    "\u102b-\u103e\u17b6-\u17d3]*"
    # Chinese and Japanese: ideographs, kana, their punctuation, wide and narrow forms
    "|[\u2e80-\u2fdf\u2ff0-\u30ff\u31c0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff]"
)
"""A sign of a script that is written without spaces: its words cannot be told apart by them."""


class Question(NamedTuple):
    """Ids of a prompt and of the answer that is expected to it, and the files of its pictures."""

    prompt: list[int]
    expected: list[int]
    pictures: tuple[str, ...] = ()


def questions(rows: Sequence[Mapping[str, Any]]) -> list[Question]:
    """The last answer of each example and what stands before it; packed rows are taken apart."""
    found = [(_last_answer(ids, labels), row) for row in rows for ids, labels in _apart(row)]
    return [q._replace(pictures=tuple(row.get(IMAGES, ()))) for q, row in found if q is not None]


def _apart(row: Mapping[str, Any]) -> Iterator[tuple[list[int], list[int]]]:
    start = 0
    for length in row.get("seq_lengths") or [len(row["input_ids"])]:
        yield list(row["input_ids"][start : start + length]), list(row["labels"][start : start + length])
        start += length


def _last_answer(ids: list[int], labels: list[int]) -> Question | None:
    end = len(labels)
    while end > 0 and labels[end - 1] == -100:
        end -= 1
    begin = end
    while begin > 0 and labels[begin - 1] != -100:
        begin -= 1
    return Question(ids[:begin], ids[begin:end]) if 0 < begin < end else None


def predict(trainer: Trainer, config: Config, run: LiveRun, start: Start) -> dict[str, float]:
    """Write an answer to every held-out prompt into generated_predictions.jsonl; returns the scores."""
    held_out = trainer.eval_dataset
    rows = [row for one in held_out.values() for row in one] if isinstance(held_out, dict) else list(held_out)
    asked = questions(rows)
    tokenizer = start.tokenizer
    began = time.perf_counter()
    given = [q.prompt for q in asked]
    answers = [text.strip() for text in _answers(trainer, config, run, start, asked)]
    expected = [_text(tokenizer, config, q.expected) for q in asked]
    prompts = [_text(tokenizer, config, ids) for ids in given]
    write(run.output / FILE, prompts, answers, expected)
    seconds = time.perf_counter() - began
    return {
        **{f"predict_{name}": value for name, value in scores(answers, expected).items()},
        "predict_runtime": round(seconds, 4),
        "predict_samples_per_second": round(len(asked) / max(seconds, 1e-9), 3),
    }


def _text(tokenizer: PreTrainedTokenizerBase, config: Config, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=config.skip_special_tokens)).strip()


def _answers(
    trainer: Trainer, config: Config, run: LiveRun, start: Start, asked: Sequence[Question]
) -> list[str]:
    """An answer to each prompt, up to one of the template's stop ids."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    tokenizer, done = start.tokenizer, 0
    prompts, pictures = [q.prompt for q in asked], [q.pictures for q in asked]

    def told(*_: Any) -> None:
        nonlocal done
        done += 1
        run.progress(done / len(prompts), message("doing.answers", done=done, total=len(prompts)))

    def decode(ids: Sequence[int], skip_special: bool) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    if choices(config)["num_beams"] > 1 or not config.use_kv_cache:
        return _by_beams(model, config, start, asked, told)
    wishes = [sampling(config, prompt, start.stops, number) for number, prompt in enumerate(prompts)]
    size = config.per_device_eval_batch_size
    made = generate.answers(
        model,
        decode,
        prompts,
        wishes,
        told,
        tokenizer.pad_token_id or 0,
        rows=size,
        pictures=pictures,
        sight=start.sight,
    )
    return [one.text for one in made]


def sampling(config: Config, prompt: Sequence[int], stops: Sequence[int], number: int) -> Sampling:
    """The generation knobs for one prompt; each has a seed of its own, so that answers do not depend on the batch."""
    said = choices(config)
    longest = said.get("max_new_tokens") or max(1, said["max_length"] - len(prompt))
    return Sampling(
        max_tokens=longest,
        temperature=said.get("temperature", 0.0),
        top_p=said.get("top_p", 1.0),
        top_k=said.get("top_k", 0),
        repetition_penalty=said["repetition_penalty"],
        seed=config.seed + number,
        stop_ids=tuple(stops),
        skip_special=config.skip_special_tokens,
    )


def _by_beams(
    model: Any, config: Config, start: Start, asked: Sequence[Question], told: Callable[[], None]
) -> list[str]:
    """Answers for which several continuations are followed, by transformers; its batches are padded on the left."""
    found: list[str] = []
    pad, size = start.tokenizer.pad_token_id, config.per_device_eval_batch_size
    sight = start.sight
    for at in range(0, len(asked), size):
        batch = [q.prompt for q in asked[at : at + size]]
        longest = max(map(len, batch))
        rows = [[pad] * (longest - len(p)) + list(p) for p in batch]
        seen = [[0] * (longest - len(p)) + [1] * len(p) for p in batch]
        ids = torch.tensor(rows)
        pictures = sight([q.pictures for q in asked[at : at + size]], ids) if sight else {}
        with generate.undisturbed(model):
            made = model.generate(
                input_ids=ids.to(model.device),
                **{name: value.to(model.device) for name, value in pictures.items()},
                attention_mask=torch.tensor(seen, device=model.device),
                pad_token_id=pad,
                eos_token_id=list(start.stops) or None,
                use_cache=config.use_kv_cache,
                **choices(config),
            )
        for row in made[:, longest:].tolist():
            found.append(_text(start.tokenizer, config, row))
            told()
    return found


def choices(config: Config) -> dict[str, Any]:
    """The generation knobs in the words of `generate`."""
    said: dict[str, Any] = {
        "do_sample": config.do_sample,
        "num_beams": config.eval_num_beams or config.generation_num_beams or config.num_beams,
        "repetition_penalty": config.repetition_penalty,
        "length_penalty": config.length_penalty,
    }
    if config.do_sample:
        said |= {"temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
    if config.generation_max_length:
        return said | {"max_length": config.generation_max_length}
    return said | (
        {"max_new_tokens": config.max_new_tokens}
        if config.max_new_tokens
        else {"max_length": config.max_length}
    )


def write(path: Path, prompts: Sequence[str], answers: Sequence[str], expected: Sequence[str]) -> None:
    """One JSON object a line: prompt, predict, label."""
    rows = zip(prompts, answers, expected, strict=True)
    lines = [json.dumps({"prompt": p, "predict": a, "label": e}, ensure_ascii=False) for p, a, e in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def scores(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """BLEU-4 of the whole set by sacrebleu and mean ROUGE F by rouge-score, 0 to 100, on words or, in scripts without
    spaces, on signs; and the share of answers that are exact.

    BLEU counts runs of up to four words as far as answers are that long (effective order): of answers of two words that
    are all right it is 100, and would be 0 without.
    """
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    if not answers:
        return {}
    bleu = sacrebleu.corpus_bleu(
        [apart(a) for a in answers], [[apart(e) for e in expected]], use_effective_order=True
    )
    names = {"rouge1": "rouge-1", "rouge2": "rouge-2", "rougeL": "rouge-l"}
    judge = RougeScorer(list(names), tokenizer=Words())
    found = [judge.score(e, a) for e, a in zip(expected, answers, strict=True)]
    rouge = {said: 100 * sum(f[name].fmeasure for f in found) / len(found) for name, said in names.items()}
    exact = 100 * sum(a == e for a, e in zip(answers, expected, strict=True)) / len(answers)
    return {"bleu-4": bleu.score, **rouge, "exact": exact}


def apart(text: str) -> str:
    """The text with spaces around each sign of an unspaced script, whatever else stands in it or in other answers."""
    return UNSPACED.sub(lambda sign: f" {sign.group(0)} ", text)


class Words:
    """Words of any script in lower case, marks that belong to a letter included; signs of unspaced scripts each by
    itself."""

    def tokenize(self, text: str) -> list[str]:
        signs = (c if c == "_" or unicodedata.category(c)[0] in "LMN" else " " for c in apart(text.lower()))
        return "".join(signs).split()
