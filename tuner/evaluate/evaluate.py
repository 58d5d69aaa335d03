"""A run that measures: each version answers the same questions, its answers are kept row by row, then scored."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tuner import paths
from tuner.config.config import Config
from tuner.config.evaluation import BASE, EvaluateConfig
from tuner.config.knobs import ConfigError, Problem
from tuner.data.scoring import score
from tuner.data.template_choice import template_of
from tuner.data.templates import stop_ids
from tuner.data.tokens import load_tokenizer
from tuner.engine.predict import scores as word_scores
from tuner.evaluate import peer_scores
from tuner.evaluate.benchmarks import benchmarks
from tuner.evaluate.judge import Judge
from tuner.evaluate.likelihood import log_likelihoods, perplexity
from tuner.evaluate.predictions import Predictions
from tuner.evaluate.questions import Question, Questions, questions
from tuner.evaluate.rewarded import completion, rewarded
from tuner.generate.adapters import BASE as NO_ADAPTER
from tuner.generate.adapters import Adapters
from tuner.generate.answers import answers
from tuner.generate.request import Answer, Sampling
from tuner.jobs.live import Live, Outcome, StoppedError
from tuner.models import loading
from tuner.models.adapter_loading import adapter_folder
from tuner.models.loading import Source
from tuner.models.vision import sight_of
from tuner.plan.facts import place
from tuner.rewards.registry import parsed
from tuner.rewards.reward import Reward
from tuner.runs.files import replace_text
from tuner.text.message import message
from tuner.tracking.adapters import named_version
from tuner.tracking.evaluations import RESULTS
from tuner.tracking.store import TrackerError


@dataclass
class Version:
    """One contestant. `label` is the word that named it; `name` and `version` are the registry's, empty and 0 outside of
    it. `folder` is where its predictions lie, inside the run's output."""

    label: str
    folder: str
    name: str = ""
    version: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


def evaluate(config: EvaluateConfig, live: Live) -> Outcome:
    """Measure each version on the data sets, on the benchmarks, or both."""
    plain = config.loading()
    rewards = parsed(config.reward_funcs)
    with live.phase("finding_model"):
        source = loading.find(plain)
        versions = _versions(config.measured())
    with live.phase("preparing_data"):
        asked = _asked(config, plain, source, live)
    with live.phase("loading_model"):
        adapters = _loaded(plain, source, versions, live)
    live.began(0, len(versions))
    for number, version in enumerate(versions, start=1):
        adapters.use(NO_ADAPTER if version.label == BASE else version.label)
        measured = _Measured(config, plain, source, adapters.model, live, rewards)
        version.metrics = measured.of(version, asked)
        live.measured(number, {f"{name}/{version.folder}": v for name, v in version.metrics.items()})
        live.stepped(number, len(versions))
    return Outcome(files=_written(config, versions, asked, live.output))


def _versions(labels: Sequence[str]) -> list[Version]:
    """The contestants, each with a folder that no other one has."""
    found: list[Version] = []
    for label in labels:
        one = _version(label)
        taken = [other.folder for other in found if other.folder.split("~")[0] == one.folder]
        found.append(replace(one, folder=f"{one.folder}~{len(taken) + 1}") if taken else one)
    return found


def _version(label: str) -> Version:
    """A contestant by its word; a folder of that name comes before a version, as everywhere."""
    row = None
    try:
        row = None if label == BASE or place(label).is_dir() else named_version(label)
    except (ValueError, TrackerError) as error:
        raise ConfigError([Problem("versions", str(error))]) from error
    if row is None:
        return Version(label, paths.slug(label, 100))
    # By its number: an alias that has moved since means other weights, whose answers are not those that lie there.
    return Version(label, paths.slug(f"{row.name}-{row.version}", 100), row.name, row.version)


def _asked(config: EvaluateConfig, plain: Config, source: Source, live: Live) -> Questions:
    if not config.dataset:
        return Questions()
    tokenizer = load_tokenizer(source.folder)
    found = questions(
        plain,
        template_of(plain, tokenizer),
        tokenizer,
        live.progress,
        unanswered=bool(config.reward_funcs),
    )
    live.learned_from(found.inputs)
    for reason, count in found.left_out.items():
        live.note(message("note.not_asked", count=count, reason=reason))
    return found


def _loaded(plain: Config, source: Source, versions: Sequence[Version], live: Live) -> Adapters:
    """The base with every version's adapter on it."""
    model = loading.load(plain, source, bits=plain.quantization_bit, whole=False)
    if not plain.quantization_bit:
        model.to(torch.device(loading.device(plain)))
    adapters = Adapters(model.eval())
    for version in versions:
        if version.label != BASE:
            # The version that was found above, whatever its alias means by now.
            folder = adapter_folder(
                plain, f"{version.name}/{version.version}" if version.name else version.label
            )
            adapters.know(version.label, folder)
            if not plain.template and _speaks_otherwise(folder, source.folder):
                live.note(message("note.other_template", label=version.label))
    return adapters


def _speaks_otherwise(adapter: Path, base: Path) -> bool:
    """Whether an adapter brings a chat template that is not its base's."""
    own = load_tokenizer(adapter).chat_template if (adapter / "tokenizer.json").is_file() else None
    return own is not None and own != load_tokenizer(base).chat_template


class _Measured:
    """One version at work: its answers, and what they come to."""

    def __init__(
        self,
        config: EvaluateConfig,
        plain: Config,
        source: Source,
        model: Any,
        live: Live,
        rewards: Sequence[Reward],
    ):
        self.config, self.plain, self.source = config, plain, source
        self.model, self.live, self.rewards = model, live, rewards
        self.tokenizer = loading.tokenizer(plain, source)
        self.sight = sight_of(model, source.folder, plain)

    def of(self, version: Version, asked: Questions) -> dict[str, float]:
        """The metrics of a version."""
        found = self._of_answers(version, asked.asked) if asked.asked else {}
        if self.config.tasks:
            self._unless_stopped()
            with self.live.phase("evaluating"):
                found |= benchmarks(self.model, self.tokenizer, self.config)
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _of_answers(self, version: Version, asked: Sequence[Question]) -> dict[str, float]:
        began = time.perf_counter()
        kept = Predictions(self.live.output / version.folder, asked)
        fresh = len(kept.missing)
        with self.live.phase("predicting"):
            self._answer(kept, asked)
        said = kept.done()
        seconds = time.perf_counter() - began
        with self.live.phase("evaluating"):
            found = self._rewarded(kept, asked, said) if self.rewards else {}
            known = [(one, text) for one, text in zip(asked, said, strict=True) if one.answer]
            if known:
                found |= self._held_against(*map(list, zip(*known, strict=True)))
        return found | ({"answers_per_second": fresh / seconds} if fresh == len(asked) else {})

    def _held_against(self, asked: Sequence[Question], said: Sequence[str]) -> dict[str, float]:
        """What answers come to beside the expected ones."""
        found = _scores(asked, said)
        if self.config.perplexity:
            found["perplexity"] = perplexity(
                log_likelihoods(self.model, asked, self.plain.cutoff_len, self._unless_stopped, self.sight)
            )
        if self.config.judge_url:
            found["judge"] = Judge(self.config).mean(asked, said, self._unless_stopped)
        return found

    def _rewarded(
        self, kept: Predictions, asked: Sequence[Question], said: Sequence[str]
    ) -> dict[str, float]:
        """What the rewards say, written beside each answer."""
        longest = self.config.max_new_tokens
        sizes = [len(self.tokenizer(text, add_special_tokens=False).input_ids) for text in said]
        prompts = [self.tokenizer.decode(one.ids) for one in asked]
        told = [
            completion(one, text, size, longest, prompt)
            for one, text, size, prompt in zip(asked, said, sizes, prompts, strict=True)
        ]
        scored, metrics = rewarded(self.rewards, told)
        kept.mark([{"reward": one.total, "rewards": dict(one.parts)} for one in scored])
        return metrics

    def _answer(self, kept: Predictions, asked: Sequence[Question]) -> None:
        missing, tokenizer = kept.missing, self.tokenizer
        wish = _wishes(self.plain, stop_ids(self._template(), load_tokenizer(self.source.folder)))

        def told(number: int, answer: Answer) -> None:
            kept.add(missing[number], answer.text.strip())
            total = len(asked)
            done = total - len(kept.missing)
            self.live.progress(done / total, message("doing.answers", done=done, total=total))
            self._unless_stopped()

        answers(
            self.model,
            lambda ids, skip: str(tokenizer.decode(ids, skip_special_tokens=skip)),
            [asked[number].ids for number in missing],
            [seeded(wish, number) for number in missing],
            told,
            tokenizer.pad_token_id or 0,
            self.config.per_device_eval_batch_size,
            pictures=[asked[number].pictures for number in missing],
            sight=self.sight,
        )

    def _unless_stopped(self) -> None:
        """End here if somebody asked for it: all answers so far are kept. Raises StoppedError."""
        if self.live.wanted():
            raise StoppedError

    def _template(self) -> Any:
        return template_of(self.plain, load_tokenizer(self.source.folder))


def _wishes(plain: Config, stops: Sequence[int]) -> Sampling:
    """The generation knobs as the decoder takes them."""
    sampled = plain.do_sample and plain.temperature > 0
    return Sampling(
        max_tokens=plain.max_new_tokens,
        temperature=plain.temperature if sampled else 0.0,
        top_p=plain.top_p if sampled else 1.0,
        top_k=plain.top_k if sampled else 0,
        repetition_penalty=plain.repetition_penalty,
        seed=plain.seed,
        stop_ids=tuple(stops),
        skip_special=plain.skip_special_tokens,
    )


def seeded(wish: Sampling, number: int) -> Sampling:
    """The wish for one row, with a seed of its own: of one seed for all, every row would draw the same turns of phrase."""
    return replace(wish, seed=(wish.seed or 0) + number)


def _scores(asked: Sequence[Question], said: Sequence[str]) -> dict[str, float]:
    """Of words: exact, BLEU and ROUGE, 0 to 100; of the rows' own patterns: shares, 0 to 1."""
    expected = [one.expected for one in asked]
    found = word_scores(said, expected)
    own = score([one.record for one in asked], expected, said)
    for name, value in (("score/correct", own.correct), ("score/preferred", own.preferred)):
        if value is not None:
            found[name] = value
    return found | (peer_scores.peer_scores(said, expected) if peer_scores.available() else {})


def _written(
    config: EvaluateConfig, versions: Sequence[Version], asked: Questions, output: Path
) -> tuple[Path, ...]:
    """What the run leaves behind: the results, and each version's predictions."""
    output.mkdir(parents=True, exist_ok=True)
    told = {
        "model": config.model_name_or_path,
        "dataset": list(config.dataset),
        "tasks": list(config.tasks),
        "rows": len(asked.asked),
        "left_out": dict(asked.left_out),
        "versions": [asdict(version) for version in versions],
    }
    replace_text(output / RESULTS, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return (output / RESULTS,)
