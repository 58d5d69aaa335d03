"""What callers send. Fields that are not known are ignored; those that would change the answer and are not supported
are refused by `refuse_unsupported`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tuner.serve.errors import ApiError


class StreamOptions(BaseModel):
    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of completions take. None is the served run's own setting."""

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=0)
    min_tokens: int = Field(0, ge=0)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] = []
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    do_sample: bool | None = None
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = {}
    best_of: int | None = None
    suffix: str | None = None
    functions: list[Any] | None = None
    audio: Any = None
    modalities: list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _nulls(cls, sent: Any) -> Any:
        """A field that is null is one that was not sent: OpenAI lets most be null, and many clients send all of them."""
        return {n: v for n, v in sent.items() if v is not None} if isinstance(sent, dict) else sent

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def tells_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatAsked(Asked):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    template: str | None = None
    """One of LLaMA-Factory's names; the model's own without it."""
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    response_format: dict[str, Any] | None = None
    continue_final_message: bool = False
    """Whether the last message, the assistant's, is the beginning of the answer; vLLM's word."""

    @property
    def top(self) -> int | None:
        """How many of the likeliest tokens are told; None for no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class TextAsked(Asked):
    """POST /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]] = Field(min_length=1)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=20)


class ScoreAsked(BaseModel):
    """POST /v1/score/evaluation, as LLaMA-Factory has it."""

    model: str = ""
    messages: list[str] = Field(min_length=1)
    max_length: int | None = Field(None, ge=1)


class DecisionAsked(BaseModel):
    """POST /v1/systemone, as `transformers serve` has it; what is not known is refused there too."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = ""
    state: str | dict[str, Any] | list[Any]
    questions: dict[str, dict[str, Any]] = Field(min_length=1, max_length=64)
    assets: dict[str, dict[str, Any]] = Field(default_factory=dict, max_length=4)


def refuse_unsupported(asked: Asked) -> None:
    """Raises ApiError for a field that would change the answer and that nothing here obeys."""
    given = {
        "suffix": asked.suffix,
        "functions": asked.functions,
        "audio": asked.audio,
        "best_of": asked.best_of is not None and asked.best_of > asked.n,
        "modalities": [m for m in asked.modalities or () if m != "text"],
    }
    for name, value in given.items():
        if value:
            raise ApiError(400, f"{name} is not supported here; leave it out.", name, "unsupported_parameter")
