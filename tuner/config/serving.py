"""The config of a run that serves a model: which base and adapters, where it listens, when it ends."""

from __future__ import annotations

from tuner.config.inference import InferenceConfig
from tuner.config.knobs import OptionalInt, OptionalText, Section, knob

PORT = 8000
"""Where `tuner api` listens if nothing else is said; LLaMA-Factory's port."""


class Serving(Section):
    title = "Serving"
    icon = ":material/dns:"

    api_host: str = knob(
        "127.0.0.1",
        "The address that it listens on; one that other machines reach needs API_KEY to be set.",
        usual="127.0.0.1",
    )
    api_port: int = knob(
        PORT, "The port that it listens on; 0 takes any free one.", ge=0, le=65535, usual=str(PORT)
    )
    api_model_name: OptionalText = knob(None, "A further name for the model that is asked by default.")
    api_key: OptionalText = knob(
        None, "What callers must bring as bearer token; give it as API_KEY in the environment.", secret=True
    )
    api_open: bool = knob(
        False,
        "Answer on loopback without a token where no key is set, to any model name, as a local tool does.",
    )
    idle_minutes: float = knob(
        30.0,
        "End after so long without a request; 0 never does.",
        ge=0,
        raised="the model stays loaded longer and keeps its slot.",
        lowered="the slot is free sooner.",
        usual="10 to 60",
        unit="minutes",
    )
    api_gives_way: bool = knob(
        True, "End when another run waits for this one's place, once the answers on their way are written."
    )
    api_rows: int = knob(
        32,
        "Answers that are written side by side; more requests wait.",
        ge=1,
        raised="more callers at once, more memory.",
        usual="8 to 64",
        unit="answers",
    )
    api_waiting: int = knob(
        128,
        "Answers that may wait; a request beyond them gets status 429.",
        ge=1,
        unit="answers",
        advanced=True,
    )


class ServeConfig(InferenceConfig, Serving):
    of_kind = "serve"

    seed: OptionalInt = knob(  # type: ignore[assignment]  # training always has one
        None, "The seed of answers whose request names none; without it each draws its own.", usual="none"
    )
