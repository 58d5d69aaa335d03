"""From a talk or a battle to answers on their way: what is asked of the server, and where each answer is kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tuner.chats import battle as battles
from tuner.chats import kept, writing
from tuner.chats import talk as talks
from tuner.chats.battle import Battle
from tuner.chats.talk import Answer, Talk
from tuner.chats.writing import Connect, Writing

Watched = Callable[[], bool]


def ask(
    talk: Talk, turn_id: str, column: str, place: int, connect: Connect, watched: Watched = lambda: True
) -> Writing:
    """Ask for an answer that waits in a talk, which is on disk. Raises ValueError for tools that are none."""
    answer = talk.turns[turn_id].answers[column][place]
    request = talks.request(talk, turn_id, column, answer.seed)
    keep = partial(_keep, talk, turn_id, column, place)
    return writing.start((talk.id, turn_id, column, place), answer, request, connect, keep, watched)


def _keep(talk: Talk, turn_id: str, column: str, place: int, answer: Answer) -> None:
    """Write an answer down, unless its talk was deleted meanwhile."""
    if kept.load(talk.id) is not None:
        kept.change_talk(talk, lambda now: talks.answered(now, turn_id, column, place, answer))


def ask_both(battle: Battle, connect: Connect, watched: Watched = lambda: True) -> list[Writing]:
    """Ask both sides of a battle at once, alike but for the model."""
    return [
        writing.start(
            (battle.id, side),
            battle.answers[side],
            battle.question() | {"model": battle.answers[side].model},
            connect,
            partial(battles.keep_answer, battle.id, side),
            watched,
        )
        for side in (0, 1)
    ]
