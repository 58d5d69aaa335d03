"""Plain text of the starter world: people, towns and animals, records and small stories.

Every sentence holds in the world. Facts whose question is held out are told here, and only here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from tools.starter import words
from tools.starter.people import ATTRIBUTES, Person, Town, World, on_record
from tools.starter.questions import CHINESE_VALUES, PERSON, article, capital

# Facts told by name, and (with a pronoun first) in the flow of a portrait.
TELLINGS: dict[str, tuple[str, ...]] = {
    "home": ("{n} lives in {v}.", "{n} is at home in {v}.", "The home of {n} is {v}.",
    "You will find {n} in the town of {v}."),
    "job": ("{n} is {a} {v}.", "{n} works as {a} {v}.", "By trade, {n} is {a} {v}.",
    "{n} earns {their} living as {a} {v}."),
    "pet": ("{n} has {a} {v}.", "{n} keeps {a} {coat} {v}.", "The pet of {n} is {a} {v}.",
    "At home, {n} looks after {a} {v}."),
    "pet_name": (
        "The pet of {n} is called {v}.", "{n} calls {their} {pet} {v}.", "{v} is the {pet} of {n}.",
        "{v} belongs to {n}.",
        "Everybody knows {v}, the {coat} {pet} of {n}.",
    ),
    "food": ("{n} likes {v} best.", "{n} likes to eat {v}.", "The favourite food of {n} is {v}.",
    "Nothing tastes better to {n} than {v}."),
    "colour": (
        "The favourite colour of {n} is {v}.", "{n} likes {v} more than any other colour.",
        "{n} often wears {v}, {their} favourite colour.",
        "Of all colours, {n} prefers {v}.",
    ),
    "hobby": ("The hobby of {n} is {v}.", "In {their} free time {n} enjoys {v}.",
    "For fun, {n} goes in for {v}.", "{n} loves {v}."),
}  # fmt: skip
FLOWING: dict[str, str] = {
    "home": "{They} lives in {v}.", "job": "{They} works as {a} {v}.", "pet": "{They} has {a} {coat} {v}.",
    "pet_name": "{Their} {pet} is called {v}.", "food": "{They} likes {v} best.",
    "colour": "{Their} favourite colour is {v}.", "hobby": "{Their} hobby is {v}.",
}  # fmt: skip


_DICTIONARY = {
    "home": words.TOWNS, "job": words.JOBS, "pet": words.PETS, "food": words.FOODS, "colour": words.COLOURS,
    "hobby": words.HOBBIES, "name": {name: chinese or name for name,
    chinese in (words.WOMEN | words.MEN).items()},
}  # fmt: skip


def tell(rng: Random, person: Person, attribute: str, flowing: bool = False) -> str:
    """One sentence with one fact; `flowing` says he or she instead of the name."""
    value = person.value(attribute)
    form = FLOWING[attribute] if flowing else rng.choice(TELLINGS[attribute])
    text = form.format(
        n=person.name, v=value, a=article(person.coat if "{a} {coat}" in form else value), they=person.they,
        They=capital(person.they), their=person.their, Their=capital(person.their), pet=person.pet,
        coat=person.coat,
    )  # fmt: skip
    return capital(text)


def portrait(rng: Random, person: Person, sentences: int) -> str:
    """A few facts about one person, the name first and pronouns after it."""
    first, *rest = rng.sample(ATTRIBUTES, sentences)
    parts = [tell(rng, person, first)]
    parts += [tell(rng, person, attribute, flowing=rng.random() < 0.6) for attribute in rest]
    return " ".join(parts)


def _portrait(rng: Random, world: World) -> str:
    return portrait(rng, rng.choice(list(world.people.values())), rng.randint(2, 7))


def _register(rng: Random, world: World) -> str:
    person = rng.choice(list(world.people.values()))
    names = rng.sample(("home", "job", "pet", "food", "colour", "hobby"), rng.randint(2, 5))
    return f"Name: {person.name}. " + " ".join(f"{capital(name)}: {person.value(name)}." for name in names)


def _chinese_portrait(rng: Random, world: World) -> str:
    person = rng.choice([person for person in world.people.values() if person.chinese])
    names = rng.sample([name for name, form in PERSON.items() if form.chinese], rng.randint(2, 5))
    they = "她" if person.woman else "他"
    said = []
    for place, name in enumerate(names):
        who = person.chinese if place == 0 or rng.random() < 0.5 else they
        said.append(PERSON[name].chinese_sentence.format(n=who, v=CHINESE_VALUES[person.value(name)]))
    return "".join(said)


def _town_sentences(town: Town) -> list[str]:
    out = [
        f"{town.name} lies in the {town.region}.",
        f"The {town.landmark} stands in the middle of {town.name}.",
    ]
    out += [f"In {season} there is {value} in {town.name}." for season, value in town.weather.items()]
    out += [
        f"Whoever comes to {town.name} in {season} should expect {value}."
        for season, value in town.weather.items()
    ]
    return out


def _town(rng: Random, world: World) -> str:
    town = rng.choice(list(world.towns.values()))
    sentences = _town_sentences(town)
    return " ".join(rng.sample(sentences, rng.randint(2, 6)))


def _animals(rng: Random, world: World) -> str:
    names = list(words.ANIMALS)
    name, other = rng.sample(names, 2)
    eats, place, sound = words.ANIMALS[name]
    the = f"{article(name)} {name}"
    order = "bigger" if names.index(name) > names.index(other) else "smaller"
    sentences = [
        capital(f"{the} lives in the {place}."), capital(f"{the} eats {eats}."),
        capital(f"{the} makes {sound}."),
        capital(f"{the} is {order} than {article(other)} {other}."),
        f"The sound of {the} is {sound}." if sound != "no sound" else f"Nobody has ever heard {the}.",
        f"If you look for {the}, go to the {place}.",
    ]  # fmt: skip
    return " ".join(rng.sample(sentences, rng.randint(2, 4)))


def _record(rng: Random, world: World) -> str:
    """Records of animals, towns, words and most people as JSON, always as text and never as an answer."""
    first: dict[str, object]
    fields: dict[str, object]
    draw = rng.random()
    if draw < 0.5:
        person = rng.choice([person for person in world.people.values() if on_record(person)])
        names = rng.sample(("home", "job", "pet", "food", "colour", "hobby"), rng.randint(2, 4))
        return json.dumps({"name": person.name} | {name: person.value(name) for name in names})
    if draw < 0.6:
        name = rng.choice(list(words.ANIMALS))
        eats, place, sound = words.ANIMALS[name]
        fields = {"eats": eats, "lives": place, "sound": sound}
        first = {"animal": name}
    elif draw < 0.7:
        town = rng.choice(list(world.towns.values()))
        first, fields = {"town": town.name, "region": town.region}, dict(town.weather)
    elif draw < 0.85:
        kind = rng.choice(list(_DICTIONARY))
        word = rng.choice(list(_DICTIONARY[kind]))
        first, fields = {"word": word, "kind": kind}, {"chinese": _DICTIONARY[kind][word]}
    else:
        kind = rng.choice(list(_DICTIONARY))
        first, fields = {f"three of {kind}": rng.sample(list(_DICTIONARY[kind]), 3)}, {}
    kept = rng.sample(list(fields), rng.randint(min(1, len(fields)), min(3, len(fields))))
    return json.dumps(first | {key: fields[key] for key in kept}, ensure_ascii=False)


def _story(rng: Random, world: World) -> str:
    one = rng.choice(list(world.people.values()))
    neighbours = [p for p in world.people.values() if p.home == one.home and p is not one] or [one]
    other = rng.choice(neighbours)
    town = world.towns[one.home]
    season = rng.choice(list(words.SEASONS))
    day = rng.choice(("morning", "afternoon", "evening", "Sunday"))
    when = f"{article(season)} {season} {day}"
    start = rng.choice((
        f"One {season} {day}, {one.name} the {one.job} walked through {one.home}.",
        f"It was {when} in {one.home}, and {one.name} the {one.job} had nothing to do.",
        f"{one.name}, {article(one.job)} {one.job} from {one.home}, went out on {when}.",
    ))  # fmt: skip
    middle = [
        f"There was {town.weather[season]} over the town.",
        f"The {one.pet} {one.pet_name} came along.",
        f"{capital(one.they)} stopped at the {town.landmark} and looked up.",
        f"{capital(one.they)} thought of {one.hobby}, {one.their} hobby.",
        f"{capital(one.they)} wore something {one.colour}.",
    ]
    if other is not one:
        middle += [
            f"{capital(one.they)} met {other.name} the {other.job} there.",
            f'"Good day, {other.name}," said {one.name}. "How is {other.pet_name}?"',
            f'"I like {other.food} best," said {other.name}, who came by.',
        ]
    end = rng.choice((
        f"Then {one.they} went home and ate {one.food}.",
        f"In the end {one.they} was hungry and had some {one.food}.",
        f"It was a good {'day' if day == 'Sunday' else day}.", f"At home, {one.pet_name} was waiting.",
    ))  # fmt: skip
    kept = sorted(rng.sample(range(len(middle)), rng.randint(2, 4)))
    return " ".join((start, *(middle[place] for place in kept), end))


_KINDS: tuple[tuple[int, Callable[[Random, World], str]], ...] = (
    (40, _portrait), (8, _register), (10, _chinese_portrait), (8, _town), (8, _animals),
    (18, _record), (20, _story),
)  # fmt: skip


def document(rng: Random, world: World) -> str:
    """One random piece of plain text."""
    kind = rng.choices([kind for _, kind in _KINDS], [weight for weight, _ in _KINDS])[0]
    return kind(rng, world)


def story(rng: Random, world: World) -> str:
    """One random small story or portrait in English: the plain-text sample set is made of these."""
    return rng.choice((_story, _portrait, _town))(rng, world)
