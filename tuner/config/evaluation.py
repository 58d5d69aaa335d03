"""The knobs of a run that measures: a data set, and the versions of a model that are held against each other on it."""

from __future__ import annotations

from typing import ClassVar

from tuner.config.inference import InferenceConfig, same
from tuner.config.knobs import Names, OptionalInt, OptionalText, Section, knob
from tuner.config.reward_sections import RewardList
from tuner.config.run_sections import Evaluation
from tuner.config.sections import Data, Output

BASE = "base"
"""What the model without any adapter is called."""


class Measuring(Section):
    title = "Evaluation"
    icon = ":material/rule:"

    dataset: Names = same(Data, "dataset")
    dataset_dir: str = same(Data, "dataset_dir")
    max_samples: OptionalInt = same(Data, "max_samples")
    versions: Names = knob(
        (),
        "What is compared: base, registered versions (name@alias, name/3) or adapter folders, with commas; empty takes base and adapter_name_or_path.",
    )
    per_device_eval_batch_size: int = same(Evaluation, "per_device_eval_batch_size")
    reward_funcs: RewardList = knob(
        (),
        "Rewards that score each answer, as in a run that learns from them: names, or each with its parameters.",
        advanced=True,
    )
    perplexity: bool = knob(True, "Also measure the perplexity of the expected answers.")
    judge_url: OptionalText = knob(
        None,
        "An OpenAI-compatible address whose model marks each answer from 1 to 10; its key comes from JUDGE_API_KEY.",
        advanced=True,
    )
    judge_model: OptionalText = knob(None, "The model to ask there.", advanced=True)
    tasks: Names = knob(
        (), "Benchmarks of lm-eval, by name or as a local YAML file, with commas; needs the library lm-eval.",
        advanced=True,
    )  # fmt: skip
    num_fewshot: OptionalInt = knob(
        None, "Worked examples before each question of a benchmark.", ge=0, advanced=True
    )
    limit: OptionalInt = knob(None, "Questions of each benchmark; empty asks all.", ge=1, advanced=True)
    run_name: OptionalText = same(Output, "run_name")


class EvaluateConfig(InferenceConfig, Measuring):
    """Which model is measured, how and on what."""

    of_kind: ClassVar[str] = "evaluate"

    # Measured twice, a model shall say the same.
    do_sample: bool = knob(False, "Sample tokens instead of always taking the most likely one.")
    max_new_tokens: int = knob(256, "The longest answer.", ge=1, unit="tokens")

    def measured(self) -> tuple[str, ...]:
        """The versions that are held against each other, each once, the base as BASE."""
        return tuple(dict.fromkeys(self.versions or (BASE, *self.adapter_name_or_path)))
