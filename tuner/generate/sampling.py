"""Which token comes next, from logits and what a request wants; each row is chosen for by itself, whatever is beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tuner.generate.request import Request, Token

if TYPE_CHECKING:
    from torch import Tensor


def plain(request: Request) -> bool:
    """Whether nothing but the logits says what comes next: such rows are chosen for together."""
    s = request.sampling
    penalties = (s.repetition_penalty - 1, s.presence_penalty, s.frequency_penalty)
    steered = any(penalties) or s.bias or request.grammar is not None
    return not steered and not _too_early(request)


def steady(request: Request) -> bool:
    """Whether it is plain, now and in all steps to come, and nothing of the logits is told."""
    return plain(request) and request.sampling.logprobs is None


def _too_early(request: Request) -> bool:
    return len(request.ids) < request.sampling.min_tokens


def chosen(logits: Tensor, request: Request) -> int:
    """The next token of a row whose logits are [vocabulary] in float32."""
    scores = penalized(logits, request)
    if request.grammar is not None:
        scores = request.grammar.mask(scores)
    return int(likely(scores[None], Wish.of([request]))[0])


def penalized(logits: Tensor, request: Request) -> Tensor:
    """Logits with what was asked to be added, less what was said before, and without the ends that come too early."""
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
    if s.bias:  # OpenAI's
        added = torch.tensor([value for _, value in s.bias], device=scores.device, dtype=scores.dtype)
        scores[[token for token, _ in s.bias]] += added
    if _too_early(request):
        scores[list(s.stop_ids)] = -torch.inf
    return scores


@dataclass(frozen=True)
class Wish:
    """How tokens of some rows are chosen. `numbers` is [4, rows]: temperature, top_k, top_p, and a point from 0 to 1.

    `chance` says that some are drawn, of those `ordered` that some are drawn from the best alone, `free` that some are drawn
    from all. `most` is the largest top_k, 0 where a row that is ordered has none.
    """

    numbers: Tensor
    chance: bool
    ordered: bool
    free: bool
    most: int

    @classmethod
    def of(cls, requests: Sequence[Request]) -> Wish:
        """The wishes of requests. One number of each one's own generator is used where it leaves something to chance, so
        that its answer does not depend on what runs beside it."""
        asked = [r.sampling for r in requests if r.sampling.temperature > 0]
        ordered = [s for s in asked if s.top_k or s.top_p < 1]
        every = bool(ordered) and all(s.top_k for s in ordered)
        return cls(
            torch.tensor([_numbers(r) for r in requests], dtype=torch.float64).t(),
            chance=bool(asked),
            ordered=bool(ordered),
            free=len(ordered) < len(asked),
            most=max(s.top_k for s in ordered) if every else 0,
        )

    def on(self, device: torch.device) -> Tensor:
        """The numbers there, on their way where that is another device."""
        if device.type != "cuda":
            return self.numbers
        return self.numbers.contiguous().pin_memory().to(device, non_blocking=True)


def _numbers(request: Request) -> tuple[float, float, float, float]:
    s = request.sampling
    return s.temperature, s.top_k, s.top_p, request.chance.random() if s.temperature > 0 else 0.0


def likely(logits: Tensor, wish: Wish) -> Tensor:
    """The next token of each row [rows] from logits [rows, vocabulary]; the likeliest where temperature is 0."""
    best = logits.argmax(-1)
    if not wish.chance:
        return best
    numbers = wish.on(logits.device)
    return torch.where(numbers[0] > 0, drawn(logits.float(), numbers, wish), best)


def drawn(logits: Tensor, numbers: Tensor, wish: Wish) -> Tensor:
    """A token of each row by chance: temperature, then top_k, then top_p, as transformers does."""
    heat, top_k, top_p, point = numbers[:, :, None]
    scores = logits / torch.where(heat > 0, heat, 1.0).float()
    of_all = _places(scores.softmax(-1), point) if wish.free else None
    if not wish.ordered:
        assert of_all is not None
        return of_all
    of_best = _of_the_best(scores, top_k, top_p, point, wish.most)
    # a row that leaves nothing out is not put in order because another is: its point would mean another token
    return of_best if of_all is None else torch.where(((top_k > 0) | (top_p < 1))[:, 0], of_best, of_all)


def _of_the_best(scores: Tensor, top_k: Tensor, top_p: Tensor, point: Tensor, most: int) -> Tensor:
    # of equals the one of the lower id comes first, whatever the rows beside it ask for
    if most:
        ids = _ranked(scores).topk(min(most, scores.shape[1]), dim=-1).indices
        scores = scores.gather(1, ids)
    else:
        scores, ids = scores.sort(descending=True, stable=True, dim=-1)
    place = torch.arange(scores.shape[1], device=scores.device)
    shares = scores.masked_fill((top_k > 0) & (place >= top_k), -torch.inf).softmax(-1)
    before = shares.cumsum(-1) - shares
    shares = torch.where((before < top_p) | (top_p >= 1), shares, 0.0)
    return ids.gather(1, _places(shares, point)[:, None])[:, 0]


def _ranked(scores: Tensor) -> Tensor:
    """Whole numbers in the order of float32 scores [rows, n], of which no two in a row are equal: of equal scores the first
    is the highest."""
    bits = scores.contiguous().view(torch.int32)
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # negative floats rise as their bits fall
    return rising * scores.shape[1] - torch.arange(scores.shape[1], device=scores.device)


def _places(shares: Tensor, point: Tensor) -> Tensor:
    """The entries of distributions [rows, n] at which the sum of shares passes `point` [rows, 1] of the whole."""
    sums = shares.double().cumsum(-1)
    found = torch.searchsorted(sums, sums[:, -1:] * point, right=True)
    last = torch.arange(shares.shape[1], device=shares.device).where(shares > 0, 0).amax(-1, keepdim=True)
    return torch.minimum(found, last)[:, 0]


def tokens(logits: Tensor, ids: list[int], top: int) -> list[Token]:
    """Chosen tokens [rows] with their log probabilities and the `top` likeliest, from logits [rows, vocabulary]."""
    said = logits.float().log_softmax(-1)
    own = said.gather(1, torch.tensor(ids, device=said.device)[:, None])[:, 0].tolist()
    if not top:
        return [Token(i, value) for i, value in zip(ids, own, strict=True)]
    best, places = said.topk(min(top, said.shape[1]), dim=-1)
    listed = [tuple(zip(p, b, strict=True)) for p, b in zip(places.tolist(), best.tolist(), strict=True)]
    return [Token(i, value, all) for i, value, all in zip(ids, own, listed, strict=True)]
