"""Which token comes next, from logits and what a request wants; pure functions of one row."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from tuner.generate.request import Request, Token

if TYPE_CHECKING:
    from torch import Tensor


def plain(request: Request) -> bool:
    """Whether the likeliest token is taken and nothing forbids it: such rows are answered together."""
    s = request.sampling
    penalties = (s.repetition_penalty - 1, s.presence_penalty, s.frequency_penalty)
    return s.temperature == 0 and not any(penalties) and request.grammar is None and not _too_early(request)


def steady(request: Request) -> bool:
    """Whether nothing but the likeliest token is asked for, now and in all steps to come."""
    return plain(request) and request.sampling.logprobs is None


def _too_early(request: Request) -> bool:
    return len(request.ids) < request.sampling.min_tokens


def chosen(logits: Tensor, request: Request) -> int:
    """The next token of a row whose logits are [vocabulary] in float32."""
    scores = penalized(logits, request)
    if request.grammar is not None:
        scores = request.grammar.mask(scores)
    return drawn(scores, request) if request.sampling.temperature > 0 else int(scores.argmax())


def penalized(logits: Tensor, request: Request) -> Tensor:
    """Logits less what was said before, and without the ends that come too early."""
    s, scores = request.sampling, logits.clone()
    if s.repetition_penalty != 1.0:  # transformers': over prompt and answer
        seen = torch.tensor(sorted({*request.prompt, *request.ids}), device=scores.device)
        held = scores[seen]
        scores[seen] = torch.where(held < 0, held * s.repetition_penalty, held / s.repetition_penalty)
    if (s.presence_penalty or s.frequency_penalty) and request.ids:  # OpenAI's: over the answer
        counts = Counter(request.ids)
        ids = torch.tensor(list(counts), device=scores.device)
        times = torch.tensor(list(counts.values()), device=scores.device, dtype=scores.dtype)
        scores[ids] -= s.presence_penalty + s.frequency_penalty * times
    if _too_early(request):
        scores[list(s.stop_ids)] = -torch.inf
    return scores


def drawn(scores: Tensor, request: Request) -> int:
    """One token by chance: temperature, then top_k, then top_p, as transformers does. One number of the request's own
    generator is used, so that its answer does not depend on what runs beside it."""
    s = request.sampling
    scores = scores / s.temperature
    if s.top_k:
        scores, ids = scores.topk(min(s.top_k, len(scores)))
    elif s.top_p < 1:
        scores, ids = scores.sort(descending=True)
    else:
        ids = None
    shares = scores.softmax(-1)
    if s.top_p < 1:
        before = shares.cumsum(-1) - shares
        shares = torch.where(before < s.top_p, shares, 0.0)
    place = _place(shares, request.chance.random())
    return place if ids is None else int(ids[place])


def _place(shares: Tensor, point: float) -> int:
    """The entry of a distribution at which the sum of shares passes `point` of the whole."""
    sums = shares.double().cumsum(-1)
    found = int(torch.searchsorted(sums, sums[-1] * point, right=True))
    return min(found, int(shares.nonzero()[-1]))


def tokens(logits: Tensor, ids: list[int], top: int) -> list[Token]:
    """Chosen tokens [rows] with their log probabilities and the `top` likeliest, from logits [rows, vocabulary]."""
    said = logits.float().log_softmax(-1)
    own = said.gather(1, torch.tensor(ids, device=said.device)[:, None])[:, 0].tolist()
    if not top:
        return [Token(i, value) for i, value in zip(ids, own, strict=True)]
    best, places = said.topk(min(top, said.shape[1]), dim=-1)
    listed = [tuple(zip(p, b, strict=True)) for p, b in zip(places.tolist(), best.tolist(), strict=True)]
    return [Token(i, value, all) for i, value, all in zip(ids, own, listed, strict=True)]
