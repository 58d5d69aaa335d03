"""Requests share the model: those that wait are let in between steps, each step makes one token for every row.

Rows that can be continued together stand in one batch (a lane). Where the model itself continues them, they are of one
adapter, and lanes take turns, because a model can wear one adapter at a time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from tuner.generate import sampling
from tuner.generate.adapters import AsItIs, Switch
from tuner.generate.decoder import AnyRows, Decoder
from tuner.generate.request import Finish, Piece, Request, Token
from tuner.generate.static import Launched, StaticRows
from tuner.generate.text import Decodes, Speech, Whole

MOST_ROWS = 32
PREFILL = 8192
"""Tokens, padding too, that are read at once before answers begin; one longer prompt is read alone."""
LOOK = 0.1
"""Seconds between two looks at who has left while waiting; there may be very many."""
TURN = 8
"""Steps of one lane before the next has its turn, where there are several: switching adapters takes time too."""


@dataclass
class Ahead:
    """Tokens that were asked for before the ones before them were known, in the order of these requests."""

    requests: list[Request]
    tokens: Launched


@dataclass
class Lane:
    """Requests that are being answered together, in the order of their rows. `adapter` is what the model must wear for it,
    None where each row knows its own."""

    adapter: str | None
    requests: list[Request] = field(default_factory=list)
    rows: AnyRows | None = None
    ahead: Ahead | None = None


class Scheduler:
    """Answers requests with one model. `submit` and `cancel` from any thread, `step` from one."""

    def __init__(
        self, decoder: Decoder, decode: Decodes, switch: Switch | None = None, most: int = MOST_ROWS
    ):
        self.decoder, self.decode = decoder, decode
        self.switch = switch or AsItIs()
        self.most = most if decoder.joins else 1
        self.waiting: deque[Request] = deque()
        self.lanes: dict[Hashable, Lane] = {}
        self.speech: dict[Request, Speech | Whole] = {}
        self.read = self.made = 0
        self.lock = threading.Condition()
        self.looked = 0.0

    def submit(self, request: Request) -> Request:
        """Take a request in; its answer begins when there is room."""
        with self.lock:
            self.waiting.append(request)
            self.lock.notify_all()
        return request

    @property
    def running(self) -> int:
        """How many answers are being written."""
        return sum(not r.finish for lane in list(self.lanes.values()) for r in list(lane.requests))

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.lanes)

    def step(self) -> None:
        """Let in who waits, then give each lane its turn."""
        self._drop_waiting()
        self._drop_failed()
        self._admit()
        several = len(self.lanes) > 1
        for key, lane in list(self.lanes.items()):
            with self._failing(lane.requests):
                if lane.adapter is not None:
                    self.switch.use(lane.adapter)
                for _ in range(TURN if several else 1):
                    self._advance(lane)
            if not lane.requests:
                del self.lanes[key]

    def cancel_all(self) -> None:
        """End every request, those that wait too."""
        for request in [*self.waiting, *(r for lane in self.lanes.values() for r in lane.requests)]:
            self._tell(request, Piece(finish="cancelled"))
        self.waiting.clear()
        self.lanes.clear()

    # --- those that come

    def _drop_waiting(self) -> None:
        if time.monotonic() - self.looked < LOOK:
            return
        self.looked = time.monotonic()
        with self.lock:
            gone = [r for r in self.waiting if r.cancelled.is_set()]
            self.waiting = deque(r for r in self.waiting if not r.cancelled.is_set())
        for request in gone:
            self._tell(request, Piece(finish="cancelled"))

    def _drop_failed(self) -> None:
        """Rows of answers that ended with an error make room before others come: not every model's can stand beside others."""
        for key, lane in list(self.lanes.items()):
            self._leave(lane, [i for i, r in enumerate(lane.requests) if r.finish])
            if not lane.requests:
                del self.lanes[key]

    def _admit(self) -> None:
        for group in self._groups():
            with self._failing(group):
                self.switch.use(group[0].adapter)
                self._enter(group)

    def _groups(self) -> Iterator[list[Request]]:
        """Who may enter, by adapter, each group small enough to be read at once."""
        with self.lock:
            free = self.most - self.running
            entering = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        by_adapter: dict[str, list[Request]] = {}
        for request in entering:
            if request.cancelled.is_set():
                self._tell(request, Piece(finish="cancelled"))
            else:
                by_adapter.setdefault(request.adapter, []).append(request)
        for requests in by_adapter.values():
            yield from _readable(sorted(requests, key=lambda r: len(r.prompt)))

    def _enter(self, group: list[Request]) -> None:
        every = any(r.sampling.prompt_logprobs for r in group)
        prompts = list(dict.fromkeys(map(_begins, group)))  # several answers to one begin alike
        places = {prompt: i for i, prompt in enumerate(prompts)}
        row = [places[_begins(r)] for r in group]
        rows, logits = self.decoder.prefill(
            [ids for ids, _ in prompts], every, [files for _, files in prompts]
        )
        self.read += sum(len(r.prompt) for r in group)
        for number, request in enumerate(group):
            self.speech[request] = self._speech(request)
            if request.sampling.prompt_logprobs:
                request.prompt_tokens = _prompt_tokens(logits[row[number]], request)
        ended = self._choose(group, logits[row, -1])
        left = [i for i in range(len(group)) if i not in ended]
        if left:
            coming, lane = [group[i] for i in left], self._lane(group[0].adapter)
            self._hear(lane)  # what is ahead goes on from tokens that only the device knows
            room = max(len(r.prompt) + r.sampling.max_tokens for r in [*lane.requests, *coming])
            chosen = [row[i] for i in left]
            lane.rows = self.decoder.enter(lane.rows, rows, chosen, min(room, self.decoder.longest))
            lane.requests += coming

    def _lane(self, adapter: str) -> Lane:
        """Where requests of the adapter that is on the model now are answered."""
        shared = self.decoder.shared()
        if shared is None:
            return self.lanes.setdefault(adapter, Lane(adapter))
        return self.lanes.setdefault(shared, Lane(None))

    def _speech(self, request: Request) -> Speech | Whole:
        def decode(ids: Sequence[int]) -> str:
            return self.decode(ids, request.sampling.skip_special)

        return Speech(decode, request.sampling.stop) if request.reads_along else Whole(decode)

    # --- those that are there

    def _advance(self, lane: Lane) -> None:
        self._leave(lane, [i for i, r in enumerate(lane.requests) if r.cancelled.is_set()], "cancelled")
        if not lane.requests or lane.rows is None:
            return
        if isinstance(lane.rows, StaticRows) and all(map(sampling.steady, lane.requests)):
            self._run_ahead(lane, lane.rows)
            return
        self._hear(lane)
        if lane.requests and lane.rows is not None:
            logits = self.decoder.step(lane.rows, [r.ids[-1] for r in lane.requests])
            self._leave(lane, self._choose(lane.requests, logits))

    def _run_ahead(self, lane: Lane, rows: StaticRows) -> None:
        """Ask for the next tokens, then tell those that were asked for before: the device need not wait for the telling."""
        if lane.ahead is None:
            rows.feed([r.ids[-1] for r in lane.requests])
        launched = rows.launch(sampling.Wish.of(lane.requests))
        before, lane.ahead = lane.ahead, Ahead(list(lane.requests), launched)
        if not rows.overlaps:
            before, lane.ahead = lane.ahead, None
        self._told(lane, before)

    def _hear(self, lane: Lane) -> None:
        """Tell what was asked for ahead."""
        before, lane.ahead = lane.ahead, None
        self._told(lane, before)

    def _told(self, lane: Lane, ahead: Ahead | None) -> None:
        """Tell tokens that were asked for; of answers that have ended since they are left out."""
        if ahead is None:
            return
        for request, token in zip(ahead.requests, ahead.tokens.ids(), strict=True):
            if not request.finish:
                self.made += 1
                self._take(request, Token(token))
        self._leave(lane, [i for i, r in enumerate(lane.requests) if r.finish])

    def _choose(self, requests: Sequence[Request], logits: torch.Tensor) -> list[int]:
        """One token for each request, told; the numbers of those that ended with it."""
        together = [i for i, r in enumerate(requests) if sampling.plain(r)]
        ids = [0] * len(requests)
        if together:
            wish = sampling.Wish.of([requests[i] for i in together])
            rows = logits if len(together) == len(requests) else logits[together]
            for i, token in zip(together, sampling.likely(rows, wish).tolist(), strict=True):
                ids[i] = token
        for i in set(range(len(requests))) - set(together):
            ids[i] = self._chosen(requests[i], logits[i])
        self.made += len(ids)
        said = _said(requests, logits, ids)
        return [i for i, (r, token) in enumerate(zip(requests, said, strict=True)) if self._take(r, token)]

    def _chosen(self, request: Request, logits: torch.Tensor) -> int:
        with self._failing([request]):
            return sampling.chosen(logits.float(), request)
        return 0  # of an answer that has ended

    def _take(self, request: Request, token: Token) -> bool:
        """Note a request's next token and tell what may be shown of it. Whether that ended the answer."""
        if request.finish:
            return True
        speech = self.speech[request]
        if not request.sampling.max_tokens:  # only the prompt was to be measured
            self._tell(request, speech.end("length"))
            return True
        request.ids.append(token.id)
        request.last = token
        if request.grammar is not None:
            request.grammar.take(token.id)
        if token.id in request.sampling.stop_ids:
            piece: Piece | None = speech.end("stop")
        else:
            piece = speech.add(token, self._ending(request))
        if piece is not None:
            self._tell(request, piece)
        return bool(request.finish)

    def _ending(self, request: Request) -> Finish:
        if request.grammar is not None and request.grammar.ended:
            return "stop"
        used = len(request.prompt) + len(request.ids)
        full = len(request.ids) >= request.sampling.max_tokens or used >= self.decoder.longest
        return "length" if full else ""

    def _tell(self, request: Request, piece: Piece) -> None:
        if piece.finish:
            request.finish = piece.finish
            self.speech.pop(request, None)
        request.told(piece)

    # --- those that go

    def _leave(self, lane: Lane, gone: Sequence[int], finish: Finish = "") -> None:
        """Take rows out of a lane, telling their requests why where they do not know yet."""
        if not gone:
            return
        if finish:
            for i in gone:
                self._tell(lane.requests[i], self.speech[lane.requests[i]].end(finish))
        left = [i for i in range(len(lane.requests)) if i not in set(gone)]
        if lane.rows is not None:
            lane.rows, left = self.decoder.leave(lane.rows, gone)
        if lane.rows is None:
            lane.ahead = None
        lane.requests = [lane.requests[i] for i in left]

    @contextmanager
    def _failing(self, requests: Sequence[Request]) -> Iterator[None]:
        """What goes wrong ends these requests with the error, and no others."""
        try:
            yield
        except Exception as error:
            for request in list(requests):
                if not request.finish:
                    self._tell(request, Piece(finish="error", error=error))


def _begins(request: Request) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """What an answer begins with: ids and pictures."""
    return tuple(request.prompt), request.pictures


def _readable(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Groups whose prompts, padded to the longest of each, stay within PREFILL tokens. From short to long."""
    group: list[Request] = []
    for request in requests:
        if group and len(request.prompt) * (len(group) + 1) > PREFILL:
            yield group
            group = []
        group.append(request)
    if group:
        yield group


def _prompt_tokens(logits: torch.Tensor, request: Request) -> tuple[Token, ...]:
    """A prompt's tokens with their log probabilities; nothing stands before the first, so it has none."""
    ids = list(request.prompt)
    read = logits[len(logits) - len(ids) : -1]
    top = request.sampling.logprobs or 0
    rest = sampling.tokens(read, ids[1:], top) if len(ids) > 1 else []
    return (Token(ids[0]), *rest)


def _said(requests: Sequence[Request], logits: torch.Tensor, ids: list[int]) -> list[Token]:
    """The chosen tokens, with log probabilities for those that asked."""
    asked = [i for i, r in enumerate(requests) if r.sampling.logprobs is not None]
    said = [Token(i) for i in ids]
    if asked:
        top = max(requests[i].sampling.logprobs or 0 for i in asked)
        for i, token in zip(asked, sampling.tokens(logits[asked], [ids[i] for i in asked], top), strict=True):
            said[i] = Token(token.id, token.logprob, token.top[: requests[i].sampling.logprobs or 0])
    return said
