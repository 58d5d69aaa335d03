"""A decision model's answers to the rows kept aside: temperatures fitted on them, files beside the weights, and the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tuner.config.config import Config
from tuner.data.decision_rows import Read, label_ids, questions_in
from tuner.data.decision_scores import LEAST, Answered, Prior, bins, confusions, figures, temperatures
from tuner.data.decisions import NOUL, REPORT, SCORE, SETTINGS, TYPES, Question, settings
from tuner.data.tokens import load_tokenizer
from tuner.engine.decision_trainer import label_logits, padded
from tuner.engine.live import LiveRun
from tuner.engine.setup import Start
from tuner.runs.files import replace_text
from tuner.text.message import message

if TYPE_CHECKING:
    from transformers import Trainer

MOST_PRIOR = 20_000
"""Records of what is learnt from that are looked at for how often each option is expected."""


def labels_of(start: Start) -> list[int]:
    """The ids of LABELS; 0 for one that no question of the rows may use."""
    return [max(found, 0) for found in label_ids(load_tokenizer(start.source.folder))]


def settle(trainer: Trainer, config: Config, run: LiveRun, start: Start) -> dict[str, float]:
    """Answer the rows kept aside, fit temperatures, and write both beside what was saved; what answers are worth by them."""
    found = {} if config.sharded else _answers_of(trainer, config, run, start)
    every = [one for own in found.values() for one in own]
    heat = temperatures(every) if config.calibrate else {}
    if config.do_train:
        _keep_settings(config, run, every, heat)
    if not every:
        return {}
    prior = _prior(start)
    report = _report(every, heat, prior)
    replace_text(run.run.folder / REPORT, json.dumps(report, ensure_ascii=False))
    before, after, worth = report["before"], report["after"], report["prior"]
    metrics = {f"decision_{name}": value for name, value in after.items()}
    return metrics | {
        "decision_uncalibrated_error": before["calibration_error"],
        "decision_prior_accuracy": worth["accuracy"],
        "decision_prior_brier": worth["brier"],
    }


def _keep_settings(
    config: Config, run: LiveRun, every: Sequence[Answered], heat: Mapping[str, float]
) -> None:
    (run.output / SETTINGS).write_text(json.dumps(settings(heat), indent=2) + "\n", encoding="utf-8")
    few = [
        kind for kind in TYPES if kind not in heat and (not every or any(one.type == kind for one in every))
    ]
    if config.calibrate and few:
        run.note(message("note.few_questions", types=", ".join(few), least=LEAST))


def _report(every: Sequence[Answered], heat: Mapping[str, float], prior: Prior) -> dict[str, Any]:
    return {
        "questions": len(every),
        "records": len({one.record for one in every}),
        "temperature": dict(heat),
        "before": figures(every, {}),
        "after": figures(every, heat),
        "prior": figures(prior.of(every), {}),
        "bins": {"before": bins(every, {}), "after": bins(every, heat)},
        "confusions": confusions(every),
    }


def _prior(start: Start) -> Prior:
    found = Prior()
    rows = start.rows.train.in_order() if start.streamed else iter(start.rows.train)
    for row in islice(rows, MOST_PRIOR):
        for one in questions_in(row):
            found.add(one.name, TYPES[one.type], one.options, one.shares)
    return found


def _answers_of(trainer: Trainer, config: Config, run: LiveRun, start: Start) -> dict[str, list[Answered]]:
    """What the model answers to each set of rows kept aside."""
    held = trainer.eval_dataset
    if held is None:
        return {}
    sets = held if isinstance(held, dict) else {"": held}
    total, done = sum(map(len, sets.values())), 0
    found: dict[str, list[Answered]] = {}
    for name, rows in sets.items():
        found[name] = list(answered(trainer.model, rows, labels_of(start), config, start, run, done, total))
        done += len(rows)
    return found


def answered(
    model: Any,
    rows: Any,
    ids: Sequence[int],
    config: Config,
    start: Start,
    run: LiveRun,
    done: int,
    total: int,
) -> Iterator[Answered]:
    """The answers to rows, of which `done` of `total` were answered before."""
    model.eval()
    wanted, size = torch.tensor(list(ids), device=model.device), config.per_device_eval_batch_size
    collate = partial(padded, pad_id=start.tokenizer.pad_token_id)
    for at in range(0, len(rows), size):
        part = [rows[i] for i in range(at, min(at + size, len(rows)))]
        batch = {name: value.to(model.device) for name, value in collate(part).items()}
        with torch.no_grad():
            logits = label_logits(model, batch, wanted).tolist()
        asked = [(done + at + place, one) for place, row in enumerate(part) for one in questions_in(row)]
        yield from (_answered(record, one, own) for (record, one), own in zip(asked, logits, strict=True))
        run.progress(
            (done + at + len(part)) / total, message("doing.records", done=done + at + len(part), total=total)
        )


def _answered(record: int, one: Read, logits: Sequence[float]) -> Answered:
    first = 2 if one.type else 0
    own = tuple(logits[first : first + len(one.options)])
    return Answered(record, one.name, TYPES[one.type], one.options, tuple(one.shares), own)


def predict(trainer: Trainer, config: Config, run: LiveRun, start: Start) -> dict[str, float]:
    """A line for each record kept aside into generated_predictions.jsonl: answers as `/v1/systemone` gives them, and gold."""
    found = [one for own in _answers_of(trainer, config, run, start).values() for one in own]
    heat = _kept_heat(run.output)
    lines: dict[int, dict[str, Any]] = {}
    for one in found:
        line = lines.setdefault(one.record, {"answers": {}, "gold": {}})
        order = _order(one)
        question = Question(
            one.name, one.type, None, tuple(one.options[i] for i in order), (None,) * len(order)
        )
        shares = one.shares(heat.get(one.type, 1.0))
        line["answers"][one.name] = question.answer([round(float(shares[i]), 6) for i in order])
        line["gold"][one.name] = {one.options[i]: one.gold[i] for i in order}
    run.output.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values())
    (run.output / "generated_predictions.jsonl").write_text(text, encoding="utf-8")
    return {f"predict_{name}": value for name, value in figures(found, heat).items()}


def _order(one: Answered) -> list[int]:
    """Options as people look for them: levels and truths as they are, a choice by name, for it was asked in any order."""
    places = list(range(len(one.options)))
    return places if one.type in (NOUL, SCORE) else sorted(places, key=lambda i: one.options[i])


def _kept_heat(folder: Path) -> dict[str, float]:
    file = folder / SETTINGS
    found: dict[str, float] = (
        json.loads(file.read_text(encoding="utf-8"))["temperature"] if file.is_file() else {}
    )
    return found
