"""What every stage begins with: the model found, the data encoded, the weights loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.config.config import Config
from tuner.data.prepare import Prepared
from tuner.data.stream import Stream
from tuner.data.template_choice import to_save
from tuner.data.templates import stop_ids
from tuner.data.tokens import load_tokenizer
from tuner.engine import adapters, methods, shared_rows, vocabulary
from tuner.engine.live import LiveRun
from tuner.jobs import planning
from tuner.models import loading
from tuner.models.loading import Source
from tuner.models.vision import Sight, sight_of
from tuner.plan.plan import Plan
from tuner.runs import checkpoints

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.models.auto.auto_factory import _BaseAutoModelClass


@dataclass
class Start:
    """A model with its data. `fresh` are the settings of an adapter that the trainer is still to add."""

    config: Config
    source: Source
    rows: Prepared
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel | PeftModel
    fresh: PeftConfig | None
    plan: Plan
    checkpoint: Path | None = None
    """Where training goes on from."""
    stops: tuple[int, ...] = ()
    """Ids at which an answer of the template ends."""

    @property
    def packed(self) -> bool:
        """Whether rows hold several examples each."""
        first: dict[str, Any] = next(
            self.rows.train.in_order() if self.streamed else iter(self.rows.train), {}
        )
        return "seq_lengths" in first

    @property
    def sight(self) -> Sight | None:
        """How pictures are made ready for the model; None where it takes none."""
        return sight_of(self.model, self.source.folder, self.config)

    @property
    def streamed(self) -> bool:
        """Whether rows are read as they are needed, their number unknown."""
        return isinstance(self.rows.train, Stream)


def begin(
    config: Config, run: LiveRun, kind: type[_BaseAutoModelClass] | None = None, **changes: Any
) -> Start:
    """Find, read, load; each a phase of the run. Without a `kind` the model is one that writes; `changes` go to the model's own configuration."""
    shared_rows.wait_for_the_first(run)
    with run.phase("finding_model"):
        checkpoint = checkpoints.start_of(run.run, config) if config.do_train else None
        source = adapters.base_of(config, vocabulary.widened(config, loading.find(config)))
        adapters.check_layers(config, source, kind, **changes)
    with run.phase("preparing_data"):
        words = load_tokenizer(source.folder)
        rows = shared_rows.prepared(config, words, run)
        run.learned_from(rows.inputs)
    plan = planning.settled(run.run, config, source.folder)
    shared_rows.let_others_begin(run, config)
    with run.phase("loading_model"):
        tokenizer = loading.tokenizer(config, source)
        # Saved with the weights, so that others ask in the words it was taught in.
        tokenizer.chat_template = to_save(rows.template, words, config) or tokenizer.chat_template
        whole = config.finetuning_type in ("full", "freeze")
        model = loading.load(config, source, bits=config.quantization_bit, whole=whole, kind=kind, **changes)
        model, fresh = methods.attach(config, model, checkpoint)
    stops = tuple(stop_ids(rows.template, words)) if rows.template else ()
    return Start(config, source, rows, tokenizer, model, fresh, plan, checkpoint, stops)
