"""The table of what a run can be. Whatever differs by stage is asked of a row here; no other file lists stages.

Adding a stage is a row (and its name in `Stage`), its function in stages/, and a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Stage = Literal["pt", "sft", "rm", "dpo", "kto", "decide", "grpo", "rloo", "ppo"]
Family = Literal["train", "evaluate", "export", "serve"]
Rows = Literal["text", "chat", "pairs", "labelled", "decisions", "prompts"]
"""What a data set holds: plain text, chats, pairs of a better and a worse answer, answers marked good or bad, records with
questions that have typed answers. Prompts are made from chats: each is a question to which the model itself writes the answers."""
Predicts = Literal["", "answers", "scores", "decisions"]
GroupLoss = Literal["dapo", "grpo", "dr_grpo", "bnpo"]
"""How losses of tokens are averaged where answers to a prompt are compared."""
Baseline = Literal["", "mean", "others", "value"]
"""What an answer's reward is compared with: the mean of its group, that of the group's others, or a learnt value."""

REWARDS = ("rewards/margins", "rewards/chosen", "rewards/rejected")
LOGPS = ("logps/chosen", "logps/rejected")
ANSWERED = (
    "answer_reward", "reward_parts", "distance", "signal", "answer_lengths", "cut", "entropy", "objective", "limited", "step_time",
)  # fmt: skip
DECIDED = (
    "accuracy", "record_accuracy", "brier", "calibration_error", "kl", "score_distance",
    *(f"{name}/{kind}" for name in ("accuracy", "brier", "kl") for kind in ("noul", "choice", "score")),
)  # fmt: skip
ANYTHING: tuple[Rows, ...] = ("chat", "pairs", "labelled", "text")
"""Every data set has prompts; plain text is one as it stands."""
DRAWN_FREELY: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 512}
"""TRL's way of drawing answers to learn from: by the very probabilities that the loss then moves."""


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    `entry` is the function that does it and `config` the class of its knobs, both as module:name; `verb` is the command. `reads` are the data sets it takes, `usual_for` those that are
    mostly meant for it, and `rows` is how a row is encoded, None where none is. `metrics` are what an evaluation measures beside the loss,
    `charts` the names of the run page's own charts. `losses` are what pref_loss may name, empty where the loss is fixed.
    """

    name: str
    label: str
    entry: str
    family: Family = "train"
    verb: str = "train"
    config: str = "tuner.config.config:Config"
    reads: tuple[Rows, ...] = ()
    usual_for: Rows | None = None
    rows: Rows | None = None
    metrics: tuple[str, ...] = ()
    charts: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    engines: tuple[str, ...] = ("trl",)
    devices: int = 1
    """How many GPUs a run takes; on a machine without one it takes the CPU."""
    needs_reference: bool = False
    predicts: Predicts = ""
    scores: bool = False
    """Whether the model ends in one number instead of the next token's logits."""
    pictures: bool = False
    """Whether it learns from rows with pictures."""
    streams: bool = True
    ordered: bool = False
    """Whether its rows come in an order of their own, which shuffling would undo."""
    board: str = ""
    """What LLaMA-Factory's board calls it."""
    goes_on: bool = False
    """Whether a run that ended early finds what it left behind and goes on from there, without a checkpoint."""
    baseline: Baseline = ""
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Knobs whose default is another one for this kind than for the rest."""

    @property
    def learns_tokens(self) -> bool:
        """Whether each row is tokens to predict, so that rows may be packed and token losses chosen."""
        return self.family == "train" and self.rows in ("text", "chat")

    @property
    def rewarded(self) -> bool:
        """Whether it learns from answers that it writes itself and that rewards score."""
        return self.rows == "prompts"

    @property
    def compares(self) -> bool:
        """Whether it learns which answers are better, rather than one answer."""
        return self.rows in ("pairs", "labelled")


_TABLE = (
    Kind(
        "pt",
        "Pre-training",
        "tuner.stages.pt:train",
        reads=("text", "chat"),
        usual_for="text",
        rows="text",
        metrics=("mean_token_accuracy", "entropy"),
        charts=("loss", "token_accuracy"),
        engines=("packed", "trl"),
        board="Pre-Training",
    ),
    Kind(
        "sft",
        "Fine-tuning",
        "tuner.stages.sft:train",
        reads=("chat",),
        usual_for="chat",
        rows="chat",
        metrics=("mean_token_accuracy", "entropy"),
        charts=("loss", "token_accuracy"),
        pictures=True,
        engines=("packed", "trl"),
        predicts="answers",
        board="Supervised Fine-Tuning",
    ),
    Kind(
        "rm",
        "Reward model",
        "tuner.stages.rm:train",
        reads=("pairs",),
        rows="pairs",
        metrics=("rewards/accuracies", *REWARDS),
        charts=("preference_loss", "reward_accuracy", "score_margin"),
        engines=("packed", "trl"),
        predicts="scores",
        scores=True,
        board="Reward Modeling",
    ),
    Kind(
        "dpo",
        "Preference (DPO)",
        "tuner.stages.dpo:train",
        reads=("pairs",),
        usual_for="pairs",
        rows="pairs",
        metrics=("rewards/accuracies", *REWARDS, *LOGPS),
        charts=("preference_loss", "rewards", "margin", "accuracy"),
        losses=(
            "sigmoid", "hinge", "ipo", "orpo", "simpo",
            "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "sigmoid_norm",
            "aot", "aot_unpaired", "discopop", "sft",
        ),
        pictures=True,
        engines=("packed", "trl"),
        needs_reference=True,
        board="DPO",
    ),
    Kind(
        "kto",
        "Ratings (KTO)",
        "tuner.stages.kto:train",
        reads=("labelled",),
        usual_for="labelled",
        rows="labelled",
        metrics=(*REWARDS, *LOGPS, "kl"),
        charts=("loss", "rewards", "margin", "kl"),
        engines=("packed", "trl"),
        needs_reference=True,
        streams=False,
        ordered=True,
        board="KTO",
    ),
    Kind(
        "decide",
        "Decisions",
        "tuner.stages.decide:train",
        reads=("decisions",),
        usual_for="decisions",
        rows="decisions",
        metrics=DECIDED,
        charts=("loss", "decisions", "calibration", "decision_distance"),
        engines=("packed", "trl"),
        predicts="decisions",
        defaults={"enable_thinking": False},
    ),
    Kind(
        "grpo",
        "Rewards (GRPO)",
        "tuner.stages.grpo:train",
        reads=ANYTHING,
        rows="prompts",
        metrics=("reward",),
        charts=ANSWERED,
        engines=("packed", "trl"),
        streams=False,
        baseline="mean",
        defaults=DRAWN_FREELY,
    ),
    Kind(
        "rloo",
        "Rewards (RLOO)",
        "tuner.stages.rloo:train",
        reads=ANYTHING,
        rows="prompts",
        metrics=("reward",),
        charts=ANSWERED,
        engines=("packed", "trl"),
        streams=False,
        baseline="others",
        defaults={**DRAWN_FREELY, "num_generations": 2, "beta": 0.05},
    ),
    Kind(
        "ppo",
        "Rewards (PPO)",
        "tuner.stages.ppo:train",
        reads=ANYTHING,
        rows="prompts",
        metrics=("reward",),
        charts=(*(name for name in ANSWERED if name != "signal"), "value_loss", "kl_weight"),
        streams=False,
        baseline="value",
        board="PPO",
    ),
    Kind(
        "serve",
        "Serve",
        "tuner.serve.run:serve",
        family="serve",
        verb="api",
        config="tuner.config.serving:ServeConfig",
    ),
    Kind(
        "evaluate",
        "Evaluation",
        "tuner.evaluate.evaluate:evaluate",
        family="evaluate",
        verb="evaluate",
        config="tuner.config.evaluation:EvaluateConfig",
        predicts="answers",
        goes_on=True,
    ),
    Kind(
        "import",
        "Import",
        "tuner.models.importing:take_in",
        family="export",
        verb="adapters --import",
        config="tuner.config.importing:ImportConfig",
        goes_on=True,
    ),
    Kind(
        "export",
        "Export",
        "tuner.export.entry:export",
        family="export",
        verb="export",
        config="tuner.config.export:ExportConfig",
    ),
)  # fmt: skip
KINDS: dict[str, Kind] = {kind.name: kind for kind in _TABLE}
ONLY_TRL = frozenset({"aot", "aot_unpaired", "discopop", "sft"})
"""Losses of pref_loss that TRL's trainer has and we do not."""
WITHOUT_REFERENCE = frozenset({"orpo", "simpo"})
"""Losses of pref_loss that compare the model with no other."""


def named(*, where: Callable[[Kind], object]) -> tuple[str, ...]:
    """The names of the kinds for which something holds, in the table's order."""
    return tuple(name for name, kind in KINDS.items() if where(kind))


def usual_for(rows: Rows) -> str:
    """The stage that data sets of these rows are mostly for."""
    return named(where=lambda kind: kind.usual_for == rows)[0]


def default_of(stage: object, name: str, usual: Any) -> Any:
    """What a knob is at for a stage where nothing is said; `usual` is what it is at for most."""
    kind = KINDS.get(str(stage))
    return kind.defaults.get(name, usual) if kind else usual


def trains(name: str) -> bool:
    """Whether runs of this name learn; an unknown name is one of an older or a newer studio, whose runs did."""
    return name not in KINDS or KINDS[name].family == "train"


STAGES: tuple[str, ...] = get_args(Stage)
DEFAULT: Stage = "sft"
TOKENS = named(where=lambda kind: kind.learns_tokens)
CHATS = named(where=lambda kind: kind.learns_tokens and kind.rows == "chat")
PACKED = named(where=lambda kind: "packed" in kind.engines)
PREFERENCES = named(where=lambda kind: kind.needs_reference)
CHOSEN_LOSS = named(where=lambda kind: kind.losses)
DECIDING = named(where=lambda kind: kind.rows == "decisions")
LABELLED = named(where=lambda kind: kind.rows == "labelled")
REWARDED = named(where=lambda kind: kind.rewarded)
GROUPED = named(where=lambda kind: kind.rewarded and kind.baseline != "value")
CLIPPED = named(where=lambda kind: kind.baseline == "mean")
BASELINED = named(where=lambda kind: kind.baseline == "others")
VALUED = named(where=lambda kind: kind.baseline == "value")
