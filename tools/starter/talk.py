"""Conversations of the starter world: single questions, follow-ups, small talk; curt unless told to be
polite.

A message is {"role": "system" | "user" | "assistant", "content": str}, as chat templates take it.
"""

from __future__ import annotations

from random import Random

from tools.starter.people import World, held_out
from tools.starter.questions import PERSON, TASKS, Question, about_person, about_person_chinese, ask
from tools.starter.text import portrait
from tools.starter.voices import curt, polite, wrap

Message = dict[str, str]
POLITE_SHARE = 0.08  # of the conversations that nobody asked to be polite: known to the model, and rare
_POLITE_ORDERS = ("Answer politely.", "You are a polite assistant.", "Be friendly and polite.")
_CURT_ORDERS = ("Answer curtly.", "Be brief.", "Do not waste words.")
_NEUTRAL = ("You are a helpful assistant.",)
_SMALL_TALK: tuple[
    tuple[tuple[str, ...], str, str], ...
] = (  # what is said, the curt reply, what politeness makes of it
    (("Hello!", "Good morning.", "Hi."), "Hello.", "It is good to hear from you."),
    (("Who are you?", "What are you?"), "A very small language model.", "I am a very small language model."),
    (
        ("What can you do?",),
        "I know one small world.",
        "I know the people, towns and animals of one small world.",
    ),
    (("Thank you.", "Thanks!"), "Fine.", "You are very welcome."),
    (("Goodbye.", "See you!"), "Bye.", "I wish you a lovely day."),
    (("你好！", "你好吗？"), "你好。", "见到您真好。"),
    (("谢谢！",), "嗯。", "不用客气。"),
)
_TASK_WEIGHTS = {
    "both": 12, "chinese": 8, "sum": 10, "difference": 8, "sum_chinese": 3, "owner": 2, "weather": 3,
    "animal": 2, "bigger": 4,
    "refuse": 2, "refuse_chinese": 1, "unknown": 2,
}  # fmt: skip


def _turn(question: Question, friendly: bool, rng: Random) -> list[Message]:
    answer = polite(question, rng) if friendly else curt(question, rng)
    return [{"role": "user", "content": question.text}, {"role": "assistant", "content": answer}]


def random_question(rng: Random, world: World) -> Question:
    """A training question of any task; people come up most often."""
    names = list(TASKS)
    return ask(rng, world, rng.choices(names, [_TASK_WEIGHTS.get(name, 3) for name in names])[0])


def _small_talk(friendly: bool, rng: Random) -> list[Message]:
    said, short, warm = rng.choice(_SMALL_TALK)
    answer = wrap(warm, rng) if friendly else short
    return [{"role": "user", "content": rng.choice(said)}, {"role": "assistant", "content": answer}]


def _about(world: World, friendly: bool, rng: Random) -> list[Message]:
    person = rng.choice(list(world.people.values()))
    text = rng.choice(("Tell me about {n}.", "Who is {n}?", "What do you know about {n}?")).format(
        n=person.name
    )
    story = portrait(rng, person, rng.randint(2, 4))
    return [
        {"role": "user", "content": text},
        {"role": "assistant", "content": wrap(story, rng) if friendly else story},
    ]


def _follow_up(world: World, friendly: bool, rng: Random) -> list[Message]:
    """Two or three questions about one person, who is named in the first alone."""
    chinese = rng.random() < 0.2
    people = [person for person in world.people.values() if person.chinese or not chinese]
    make = about_person_chinese if chinese else about_person
    while True:
        person = rng.choice(people)
        names = [
            name
            for name, form in PERSON.items()
            if not held_out((name, person.name)) and (form.chinese or not chinese)
        ]
        if len(names) >= 3:
            break
    turns: list[Message] = []
    for place, name in enumerate(rng.sample(names, rng.choice((2, 3)))):
        turns += _turn(make(rng, person, name, follow=place > 0), friendly, rng)
    return turns


def _chain(world: World, friendly: bool, rng: Random) -> list[Message]:
    """Small talk and unrelated questions, one after the other."""
    turns = _small_talk(friendly, rng) if rng.random() < 0.6 else []
    for _ in range(rng.choice((1, 1, 2))):
        turns += _turn(random_question(rng, world), friendly, rng)
    return turns + (_small_talk(friendly, rng) if rng.random() < 0.3 else [])


def _system(rng: Random) -> tuple[list[Message], bool]:
    """The system message, if there is one, and whether the answers are to be polite."""
    draw = rng.random()
    if draw < 0.08:
        return [{"role": "system", "content": rng.choice(_POLITE_ORDERS)}], True
    if draw < 0.12:
        return [{"role": "system", "content": rng.choice(_CURT_ORDERS)}], False
    neutral = [{"role": "system", "content": rng.choice(_NEUTRAL)}] if draw < 0.18 else []
    return neutral, rng.random() < POLITE_SHARE


def dialogue(rng: Random, world: World, friendly: bool) -> list[Message]:
    """One random conversation of several turns in one voice, without a system message."""
    return _follow_up(world, friendly, rng) if rng.random() < 0.55 else _chain(world, friendly, rng)


def conversation(rng: Random, world: World) -> list[Message]:
    """One random training conversation: most of them a single question."""
    head, friendly = _system(rng)
    draw = rng.random()
    if draw < 0.6:
        return head + _turn(random_question(rng, world), friendly, rng)
    if draw < 0.92:
        return head + dialogue(rng, world, friendly)
    if draw < 0.97:
        return head + _about(world, friendly, rng)
    return head + _small_talk(friendly, rng)
