"""The table, on optimizers that need less memory than Adam on all weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from tuner.config.knobs import Names, OptionalInt, Section, knob, none_word

WHOLE = {"finetuning_type": ("full", "freeze")}
GALORE = {"use_galore": (True,)}
APOLLO = {"use_apollo": (True,)}
BADAM = {"use_badam": (True,)}


class Optimizers(Section):
    title = "Memory-saving optimizers"
    icon = ":material/memory:"

    use_galore: bool = knob(
        False,
        "Train all weights with gradients projected to a low rank (GaLore).",
        needs=WHOLE,
        advanced=True,
    )
    galore_target: Names = knob(
        ("all",), "The layers GaLore projects; all means every linear one.", needs=GALORE, advanced=True
    )
    galore_rank: int = knob(
        16, "The rank gradients are projected to.", ge=1, raised="closer to full training, more memory.",
        usual="128 to 1024", needs=GALORE, advanced=True,
    )  # fmt: skip
    galore_update_interval: int = knob(
        200, "Steps between two new projections.", ge=1, lowered="follows the gradient more closely, slower.",
        usual="50 to 500", unit="steps", needs=GALORE, advanced=True,
    )  # fmt: skip
    galore_scale: float = knob(
        2.0, "How strongly projected updates count.", gt=0, raised="like a higher learning rate.", usual="0.25 to 4",
        needs=GALORE, advanced=True,
    )  # fmt: skip
    galore_proj_type: Literal["std", "reverse_std", "right", "left", "full"] = knob(
        "std", "The side of a weight that is projected.", needs=GALORE, advanced=True
    )
    galore_layerwise: bool = knob(
        False,
        "Update each layer as soon as its gradient is there, which saves the most memory.",
        needs=GALORE,
        advanced=True,
    )
    use_apollo: bool = knob(
        False,
        "Train all weights with learning rates estimated in a low rank (APOLLO).",
        needs=WHOLE,
        advanced=True,
    )
    apollo_target: Names = knob(
        ("all",), "The layers APOLLO works on; all means every linear one.", needs=APOLLO, advanced=True
    )
    apollo_rank: int = knob(
        16, "The rank of the estimate.", ge=1, raised="a better estimate, more memory.", usual="1 to 256",
        needs=APOLLO, advanced=True,
    )  # fmt: skip
    apollo_update_interval: int = knob(
        200, "Steps between two new projections.", ge=1, lowered="a fresher estimate, slower.", usual="50 to 500",
        unit="steps", needs=APOLLO, advanced=True,
    )  # fmt: skip
    apollo_scale: float = knob(
        32.0, "How strongly updates count.", gt=0, raised="like a higher learning rate.", usual="1 to 128",
        needs=APOLLO, advanced=True,
    )  # fmt: skip
    apollo_proj: Literal["svd", "random"] = knob(
        "random", "How the low rank is chosen.", needs=APOLLO, advanced=True
    )
    apollo_proj_type: Literal["std", "right", "left"] = knob(
        "std", "The side of a weight that is projected.", needs=APOLLO, advanced=True
    )
    apollo_scale_type: Literal["channel", "tensor"] = knob(
        "channel",
        "Whether a rate is estimated for each channel or for a whole weight.",
        needs=APOLLO,
        advanced=True,
    )
    apollo_layerwise: bool = knob(
        False,
        "Update each layer as soon as its gradient is there, which saves the most memory.",
        needs=APOLLO,
        advanced=True,
    )
    apollo_scale_front: bool = knob(
        False, "Scale before the norm of an update is limited, not after.", needs=APOLLO, advanced=True
    )
    use_badam: bool = knob(
        False, "Train all weights, a block of layers at a time (BAdam).", needs=WHOLE, advanced=True
    )
    badam_mode: Literal["layer", "ratio"] = knob(
        "layer", "Whether a block is a layer or a share of every weight.", needs=BADAM, advanced=True
    )
    badam_start_block: OptionalInt = knob(None, "The block to begin with.", ge=0, needs=BADAM, advanced=True)
    badam_switch_mode: Annotated[
        Literal["ascending", "descending", "random", "fixed"] | None, BeforeValidator(none_word)
    ] = knob("ascending", "The order of the blocks.", needs=BADAM, advanced=True)
    badam_switch_interval: OptionalInt = knob(
        50, "Steps a block is trained before the next one; -1 never changes it.", ge=-1, unit="steps", usual="50 to 100",
        needs=BADAM, advanced=True,
    )  # fmt: skip
    badam_update_ratio: float = knob(
        0.05,
        "The share of every weight that is trained in ratio mode.",
        ge=0,
        le=1,
        needs=BADAM,
        advanced=True,
    )
    badam_mask_mode: Literal["adjacent", "scatter"] = knob(
        "adjacent", "Whether that share lies together or is scattered.", needs=BADAM, advanced=True
    )
    badam_verbose: int = knob(
        0, "How much BAdam writes into the log.", ge=0, le=2, needs=BADAM, advanced=True
    )
    use_adam_mini: bool = knob(
        False,
        "Adam with one learning rate a block of weights, at half its memory (Adam-mini).",
        advanced=True,
    )
    use_muon: bool = knob(
        False,
        "Move matrices by orthogonal steps (Muon) and everything else by Adam.",
        needs=WHOLE,
        advanced=True,
    )
