"""The table, fourth part: learning from rewards, by TRL's names, and PPO's knobs by LLaMA-Factory's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from tuner.config import kinds
from tuner.config.kinds import GroupLoss
from tuner.config.knobs import (
    Names,
    OptionalFloat,
    OptionalInt,
    OptionalText,
    Section,
    knob,
    none_word,
    split,
)
from tuner.config.spelling import listed
from tuner.text.lookup import tr

REWARDED = {"stage": kinds.REWARDED}
GROUPED = {"stage": kinds.GROUPED}
CLIPPED = {"stage": kinds.CLIPPED}
BASELINED = {"stage": kinds.BASELINED}
VALUED = {"stage": kinds.VALUED}


def _ordered(value: tuple[float, ...] | None) -> tuple[float, ...] | None:
    if value is not None and (len(value) != 2 or value[0] >= value[1]):
        raise ValueError(tr("should be two numbers, the lower one first, for example -5,5"))
    return value


RewardList = Annotated[tuple[str | dict[str, Any], ...], BeforeValidator(listed)]
"""Names of rewards, or each with its parameters: {name: {parameter: value, weight: 1.0}}."""
Numbers = Annotated[tuple[float, ...], BeforeValidator(split)]
Range = Annotated[
    tuple[float, ...] | None,
    BeforeValidator(lambda v: split(v) if none_word(v) is not None else None),
    AfterValidator(_ordered),
]


class Rewards(Section):
    title = "Rewards"
    icon = ":material/trophy:"

    reward_funcs: RewardList = knob(
        (),
        "The rewards that score an answer, each with its parameters and weight. The run learns from their weighted sum.",
        usual="one that says what is wanted, one that keeps the form",
        needs=REWARDED,
    )
    reward_weights: Numbers = knob(
        (),
        "The weights of those rewards, in their order and with commas; empty weighs each as it says itself, or as 1.",
        needs=REWARDED,
        advanced=True,
        usual="empty",
    )
    reward_model: OptionalText = knob(
        None,
        "A model that scores answers: a run of stage rm, a registered version, a folder, or with "
        "--reward_model_type api an address.",
        needs=REWARDED,
        usual="empty where rules say what is good",
    )
    reward_model_type: Literal["lora", "full", "api"] = knob(
        "lora",
        "What the reward model is: lora an adapter on the model that learns, full a model of its own, api a server "
        "that is asked.",
        needs=REWARDED,
        advanced=True,
    )
    reward_model_adapters: Names = knob(
        (), "Adapters of a reward model that is a model of its own.", needs=REWARDED, advanced=True
    )
    reward_model_quantization_bit: OptionalInt = knob(
        None, "Load the reward model in so many bits, 4 or 8.", ge=4, le=8, unit="bits", needs=REWARDED, advanced=True
    )  # fmt: skip


class Online(Section):
    title = "Learning from rewards"
    icon = ":material/autorenew:"

    num_generations: int = knob(
        8,
        "Answers generated for each prompt and compared with each other.",
        ge=2,
        raised="a more stable comparison, more time for generation.",
        lowered="faster steps with a weaker signal.",
        usual="4 to 16",
        unit="answers",
        needs=GROUPED,
    )
    beta: float = knob(
        0.0,
        "The weight of the KL divergence from the reference model; 0 needs no reference model.",
        ge=0,
        raised="stays closer to the reference, follows the reward less.",
        lowered="follows the reward more, and may degrade the language.",
        usual="0 to 0.05",
        needs=GROUPED,
    )
    loss_type: GroupLoss = knob(
        "dapo",
        "How the loss is averaged: dapo and bnpo over all tokens, grpo per answer first (tokens of long answers count less), dr_grpo by a fixed length.",
        needs=CLIPPED,
        advanced=True,
    )
    scale_rewards: Literal["group", "batch", "none"] = knob(
        "group",
        "What advantages are divided by: the standard deviation of the group, of the batch, or nothing.",
        needs=CLIPPED,
        advanced=True,
    )
    normalize_advantages: bool = knob(
        False,
        "Normalise the advantages of a batch to mean 0 and standard deviation 1.",
        needs=BASELINED,
        advanced=True,
    )
    reward_clip_range: Range = knob(
        None,
        "Rewards below the first number or above the second are cut to it, for example -5,5; empty cuts none.",
        needs=BASELINED,
        advanced=True,
        usual="empty",
    )
    num_iterations: int = knob(
        1,
        "How many times each batch of answers is used for training.",
        ge=1,
        raised="fewer answers to generate; older answers are used again.",
        usual="1",
        needs=GROUPED,
        advanced=True,
    )
    steps_per_generation: OptionalInt = knob(
        None,
        "Batches of answers that are generated at once; empty takes gradient_accumulation_steps.",
        ge=1,
        raised="more answers at once, used over several steps.",
        usual="empty",
        unit="batches",
        needs=GROUPED,
        advanced=True,
    )
    epsilon: float = knob(
        0.2,
        "The clip range of a token's probability ratio.",
        gt=0,
        raised="larger moves a step.",
        lowered="steadier.",
        usual="0.2",
        needs=GROUPED,
        advanced=True,
    )
    epsilon_high: OptionalFloat = knob(
        None,
        "The same limit upwards; empty takes epsilon.",
        gt=0,
        raised="rare tokens may become likely sooner.",
        usual="empty, or 0.28",
        needs=GROUPED,
        advanced=True,
    )
    importance_sampling_level: Literal["token", "sequence"] = knob(
        "token",
        "Whether that limit holds for each token or for the answer as a whole (GSPO).",
        needs=CLIPPED,
        advanced=True,
    )
    mask_truncated_completions: bool = knob(
        False,
        "Do not learn from answers that were cut at max_new_tokens.",
        needs=GROUPED,
        advanced=True,
    )


class Ppo(Section):
    title = "PPO"
    icon = ":material/balance:"

    ppo_buffer_size: int = knob(
        1,
        "Batches of answers that are gathered before each round of learning.",
        ge=1,
        raised="steadier rounds, fewer of them.",
        usual="1",
        unit="batches",
        needs=VALUED,
        advanced=True,
    )
    ppo_epochs: int = knob(
        4,
        "How many times each batch of answers is used for training.",
        ge=1,
        raised="learns more from each answer, less steadily.",
        usual="1 to 4",
        needs=VALUED,
    )
    ppo_score_norm: bool = knob(
        False, "Divide rewards by their running standard deviation.", needs=VALUED, advanced=True
    )  # fmt: skip
    ppo_target: float = knob(
        6.0,
        "The target KL divergence: the KL coefficient is raised above it and lowered below it.",
        gt=0,
        raised="may move further from the start.",
        lowered="stays closer to the start.",
        usual="1 to 10",
        needs=VALUED,
    )
    ppo_whiten_rewards: bool = knob(
        False, "Normalise the rewards of a batch to standard deviation 1 before advantages are computed.", needs=VALUED, advanced=True
    )  # fmt: skip
