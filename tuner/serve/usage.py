"""How many tokens were read and written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tuner.generate.request import Request


def usage(requests: Sequence[Request], prompts: Iterable[int]) -> dict[str, int]:
    """OpenAI's `usage`. `prompts` are the lengths of the prompts, each counted once; the token that ends an answer is not."""
    read = sum(prompts)
    made = sum(written(request) for request in requests)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def written(request: Request) -> int:
    """Tokens of an answer, without one that only ends it."""
    return len(request.ids) - bool(request.ids and request.ids[-1] in request.sampling.stop_ids)
