"""The table, second part: how weights are changed (LoRA, OFT, freeze, quantization, optimizers) and by what loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator

from tuner.config import kinds
from tuner.config.kinds import KINDS
from tuner.config.knobs import (
    Names,
    OptionalFloat,
    OptionalInt,
    OptionalText,
    Section,
    knob,
    nearest,
)
from tuner.text.lookup import tr

PAIRS = {"stage": kinds.CHOSEN_LOSS}
PREFERENCES = {"stage": kinds.PREFERENCES}
LABELLED = {"stage": kinds.LABELLED}
REFERRING = {"stage": kinds.PREFERENCES + kinds.REWARDED}
LORA = {"finetuning_type": ("lora",)}
ADAPTER = {"finetuning_type": ("lora", "oft")}
OFT = {"finetuning_type": ("oft",)}
FREEZE = {"finetuning_type": ("freeze",)}
WHOLE = {"finetuning_type": ("full", "freeze")}
ANSWERS = {"stage": kinds.CHATS}
DECIDING = {"stage": kinds.DECIDING}

PREFERENCE_LOSSES = tuple(loss for kind in KINDS.values() for loss in kind.losses)


class Lora(Section):
    title = "LoRA"
    icon = ":material/layers:"

    lora_rank: int = knob(
        8,
        "The size of the adapter.",
        ge=1,
        le=65536,
        raised="learns more, takes more memory, forgets more.",
        lowered="smaller and steadier.",
        usual="8 to 64",
        needs=LORA,
    )
    lora_alpha: OptionalInt = knob(
        None,
        "How strongly the adapter acts: its output is scaled by alpha / rank. Empty: twice the rank.",
        ge=1,
        raised="a stronger change, like a higher learning rate.",
        lowered="a gentler change.",
        usual="the rank or twice the rank",
        needs=LORA,
    )
    lora_dropout: float = knob(
        0.0,
        "The dropout rate of the adapter's inputs during training.",
        ge=0,
        le=1,
        raised="less overfitting, slower training.",
        usual="0 to 0.1",
        needs=LORA,
    )
    lora_target: Names = knob(
        ("all",),
        "The layers that get an adapter, by name or by one pattern; all means every linear layer.",
        usual="all",
        needs=ADAPTER,
    )
    additional_target: Names = knob(
        (), "Other layers trained whole and saved with the adapter.", advanced=True, needs=ADAPTER
    )
    create_new_adapter: bool = knob(
        False,
        "Merge the adapters you start from into the model and train a new one.",
        advanced=True,
        needs=ADAPTER,
    )
    use_rslora: bool = knob(
        False,
        "Scale by alpha over the root of the rank, which keeps high ranks useful.",
        advanced=True,
        needs=LORA,
    )
    use_dora: bool = knob(
        False,
        "Learn a direction and a length apart; a little better, clearly slower.",
        advanced=True,
        needs=LORA,
    )
    pissa_init: bool = knob(
        False,
        "Start the adapter from the model's own strongest directions (PiSSA) instead of from nothing; "
        "it often learns faster.",
        advanced=True,
        needs=LORA,
    )
    pissa_iter: int = knob(
        16,
        "Rounds of the fast decomposition that PiSSA starts from; -1 decomposes exactly.",
        ge=-1,
        advanced=True,
        raised="a more exact start that takes longer to compute.",
        usual="16",
        needs={**LORA, "pissa_init": (True,)},
    )
    pissa_convert: bool = knob(
        False,
        "At the end, also write the PiSSA adapter as a plain LoRA that fits the unchanged model.",
        advanced=True,
        needs={**LORA, "pissa_init": (True,)},
    )
    loraplus_lr_ratio: OptionalFloat = knob(
        None,
        "How many times faster the adapter's second matrix learns than its first (LoRA+); empty means equally fast.",
        gt=0,
        advanced=True,
        raised="learns faster, and may become unsteady.",
        usual="empty, or 4 to 16",
        needs=LORA,
    )
    loraplus_lr_embedding: float = knob(
        1e-6,
        "The learning rate of adapters on embeddings under LoRA+.",
        gt=0,
        advanced=True,
        usual="1e-06",
        needs=LORA,
    )


class Oft(Section):
    title = "OFT"
    icon = ":material/360:"

    oft_rank: int = knob(
        0,
        "Rotation blocks a layer, 0 to set the size of a block instead.",
        ge=0,
        raised="more and smaller blocks.",
        usual="0",
        needs=OFT,
        advanced=True,
    )
    oft_block_size: int = knob(
        32,
        "The size of the blocks that rotate the weights; a divisor of the layer's width.",
        ge=0,
        raised="can learn more, takes more memory.",
        usual="32",
        needs=OFT,
    )
    module_dropout: float = knob(
        0.0,
        "The dropout rate of rotation blocks during training.",
        ge=0,
        le=1,
        raised="less overfitting.",
        usual="0 to 0.1",
        needs=OFT,
        advanced=True,
    )
    oft_target: Names = knob(
        ("all",),
        "The layers that get a rotation, by name; all leaves it to lora_target.",
        usual="all",
        needs=OFT,
        advanced=True,
    )


class Freeze(Section):
    title = "Freeze and full"
    icon = ":material/ac_unit:"

    freeze_trainable_layers: int = knob(
        2,
        "How many layers are trained: the last ones, or the first ones for a negative number.",
        raised="can learn more, takes more memory.",
        usual="2 to 8",
        unit="layers",
        needs=FREEZE,
    )
    freeze_trainable_modules: Names = knob(
        ("all",),
        "The parts of those layers that are trained, by name; all means whole layers.",
        usual="all",
        needs=FREEZE,
        advanced=True,
    )
    freeze_extra_modules: Names = knob(
        (),
        "Parts outside the layers that are trained as well, for example embed_tokens or lm_head.",
        needs=FREEZE,
        advanced=True,
    )
    use_llama_pro: bool = knob(
        False,
        "Train only the blocks that a model was expanded by (LLaMA Pro), every so many layers.",
        advanced=True,
    )
    pure_bf16: bool = knob(
        False,
        "Keep the trained weights in bfloat16 too: least memory, but small updates are lost.",
        advanced=True,
    )


class Quantization(Section):
    title = "Quantization"
    icon = ":material/compress:"

    quantization_bit: OptionalInt = knob(
        None,
        "Load the frozen model in so many bits (QLoRA): 4 or 8 with bnb, 1 to 8 with hqq, 8 with eetq; "
        "empty keeps it whole.",
        ge=1,
        le=8,
        lowered="a large model fits a small GPU, at a small loss of quality.",
        usual="empty, or 4",
        unit="bits",
        needs=ADAPTER,
    )
    quantization_method: Literal["bnb", "hqq", "eetq"] = knob(
        "bnb", "The library that quantizes while loading.", advanced=True, needs=ADAPTER
    )
    quantization_type: Literal["fp4", "nf4"] = knob(
        "nf4",
        "The 4-bit number format of bnb; nf4 suits trained weights better.",
        advanced=True,
        needs={"quantization_bit": (4,)},
    )
    double_quantization: bool = knob(
        True,
        "Quantize the scales of 4-bit weights too, which saves about 0.4 bits a weight.",
        advanced=True,
        needs={"quantization_bit": (4,)},
    )


def _loss_names(value: object) -> object:
    """`sppo` and the like are how papers and other tools call them."""
    short = {"sppo": "sppo_hard", "nca": "nca_pair", "bco": "bco_pair", "exo": "exo_pair"}
    if isinstance(value, list | tuple):
        value = ",".join(str(v) for v in value)
    if not isinstance(value, str):
        return value
    return ",".join(short.get(part.strip(), part.strip()) for part in value.split(",") if part.strip())


def _known_losses(value: str) -> str:
    for name in value.split(","):
        if name not in PREFERENCE_LOSSES:
            like = nearest(name, PREFERENCE_LOSSES)
            hint = tr("; did you mean {like}?", like=like) if like else ""
            if name == "kto_pair":
                hint = tr("; for thumbs up and down use --stage kto")
            raise ValueError(
                tr(
                    "should be one of {preference_losses}, or several with a comma{hint}",
                    preference_losses=", ".join(PREFERENCE_LOSSES),
                    hint=hint,
                )
            )
    return value


def _numbers(value: object) -> object:
    if isinstance(value, list | tuple):
        return ",".join(str(v) for v in value)
    return value


class Preference(Section):
    title = "Preference"
    icon = ":material/thumbs_up_down:"

    pref_beta: float = knob(
        0.1,
        "How closely the model stays to the reference model.",
        ge=0,
        raised="stays closer to the reference, learns the preference less.",
        lowered="follows the preference more, and may degrade the language.",
        usual="0.05 to 0.5",
        needs=PREFERENCES,
    )
    pref_loss: Annotated[str, BeforeValidator(_loss_names), AfterValidator(_known_losses)] = knob(
        "sigmoid",
        "The preference loss: sigmoid is DPO itself; orpo and simpo need no reference model; "
        "several names with a comma are added up.",
        needs=PAIRS,
        usual="sigmoid",
    )
    pref_loss_weights: Annotated[OptionalText, BeforeValidator(_numbers)] = knob(
        None,
        "The weights of several preference losses, with commas; empty weighs each as 1.",
        needs=PAIRS,
        usual="0.8,0.2,1.0 for sigmoid,bco_pair,sft",
        advanced=True,
    )
    pref_ftx: float = knob(
        0.0,
        "The weight of an SFT loss on the chosen answer.",
        ge=0,
        raised="keeps the chosen answer likely, not only likelier than the rejected one.",
        usual="0 to 1",
        needs=PREFERENCES,
    )
    pref_bco_weight: float = knob(
        0.0,
        "How much of a loss that judges each answer by itself (BCO) is mixed in.",
        ge=0,
        raised="better and worse answers also part from a common baseline.",
        usual="0 to 1",
        needs=PAIRS,
        advanced=True,
    )
    simpo_gamma: float = knob(
        0.5,
        "The target margin of SimPO.",
        ge=0,
        raised="pushes the two answers further apart.",
        usual="0.3 to 1.6",
        needs=PAIRS | {"pref_loss": ("simpo",)},
        advanced=True,
    )
    dpo_label_smoothing: float = knob(
        0.0,
        "The share of pairs that you expect to be labelled wrongly.",
        ge=0,
        lt=0.5,
        raised="trusts each pair less.",
        usual="0 to 0.1",
        needs=PAIRS | {"pref_loss": ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired")},
        advanced=True,
    )
    ld_alpha: OptionalFloat = knob(
        None,
        "How much the words count that the longer answer has beyond the shorter one's length (LD-DPO); "
        "empty counts them fully.",
        ge=0,
        le=1,
        lowered="length is rewarded less.",
        usual="empty, or 0.3 to 0.7",
        needs=PAIRS,
        advanced=True,
    )
    kto_chosen_weight: float = knob(
        1.0,
        "The weight of examples marked good.",
        ge=0,
        raised="good examples count more; useful when they are the fewer ones.",
        usual="1 to 1.33 times bad over good",
        needs=LABELLED,
    )
    kto_rejected_weight: float = knob(
        1.0,
        "The weight of examples marked bad.",
        ge=0,
        raised="bad examples count more.",
        usual="1",
        needs=LABELLED,
    )
    ref_model: OptionalText = knob(
        None,
        "The reference model; empty takes the model as it was before this run.",
        needs=REFERRING,
        advanced=True,
    )
    ref_model_adapters: Names = knob((), "Adapters of the reference model.", needs=REFERRING, advanced=True)
    ref_model_quantization_bit: OptionalInt = knob(
        None,
        "Load the reference model in so many bits, 4 or 8.",
        ge=4,
        le=8,
        unit="bits",
        needs=REFERRING,
        advanced=True,
    )


class Decisions(Section):
    title = "Loss on decisions"
    icon = ":material/rule:"

    decision_loss: Literal["ce", "ce_rps", "brier"] = knob(
        "ce",
        "What is minimised: ce is cross-entropy with the expected shares, ce_rps adds how far a level is off, brier is the "
        "squared distance.",
        usual="ce",
        needs=DECIDING,
    )
    shuffle_options: bool = knob(
        True,
        "Ask each choice with its options in an order by chance, so that no letter is learnt for its place.",
        needs=DECIDING,
        advanced=True,
    )
    calibrate: bool = knob(
        True,
        "Fit a temperature for each type of question on the held-out rows, so that probabilities say how often an answer "
        "is right.",
        needs=DECIDING,
        advanced=True,
    )


class Answers(Section):
    title = "Loss on answers"
    icon = ":material/functions:"

    neftune_noise_alpha: OptionalFloat = knob(
        None,
        "Noise added to the embeddings during training (NEFTune) for more varied answers; empty for none.",
        ge=0,
        raised="more variety; too high gives nonsense.",
        usual="empty, or 5",
        needs=ANSWERS,
        advanced=True,
    )
    use_dft_loss: bool = knob(
        False,
        "Weigh each token by its probability (DFT), so that unlikely tokens count less.",
        needs=ANSWERS,
        advanced=True,
    )
    use_asft_loss: bool = knob(
        False, "DFT with a KL term to the model before the run (ASFT).", needs=ANSWERS, advanced=True
    )
    asft_alpha: float = knob(
        0.1,
        "The weight of that KL term.",
        ge=0,
        raised="stays closer to the start.",
        usual="0.03 to 0.1",
        needs={**ANSWERS, "use_asft_loss": (True,)},
        advanced=True,
    )
    use_eaft_loss: bool = knob(
        False,
        "Weigh each token by the model's uncertainty (EAFT), so that confident knowledge is kept.",
        needs=ANSWERS,
        advanced=True,
    )
    eaft_alpha: float = knob(
        1.0,
        "How sharply EAFT separates uncertain from certain tokens.",
        ge=0,
        raised="certain tokens count even less.",
        usual="1",
        needs={**ANSWERS, "use_eaft_loss": (True,)},
        advanced=True,
    )
