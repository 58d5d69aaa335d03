"""The facts of the starter world: one seed, one world. No torch, no files."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from tools.starter import words

Key = tuple[str, ...]
ATTRIBUTES = ("home", "job", "pet", "pet_name", "food", "colour", "hobby")
HELD_OUT_SHARE = 6  # one key in six is never asked in training


@dataclass(frozen=True)
class Person:
    """Somebody who lives in the world; each attribute is one fact."""

    name: str
    chinese: str
    woman: bool
    home: str
    job: str
    pet: str
    pet_name: str
    coat: str
    food: str
    colour: str
    hobby: str

    @property
    def they(self) -> str:
        return "she" if self.woman else "he"

    @property
    def their(self) -> str:
        return "her" if self.woman else "his"

    def value(self, attribute: str) -> str:
        """The fact called `attribute`, one of ATTRIBUTES."""
        return str(getattr(self, attribute))


@dataclass(frozen=True)
class Town:
    """A town: where it lies, what stands there and what the weather is in each season."""

    name: str
    region: str
    landmark: str
    weather: dict[str, str]


@dataclass(frozen=True)
class World:
    """All people and towns, by name."""

    people: dict[str, Person]
    towns: dict[str, Town]


@lru_cache(maxsize=4)
def build(seed: int = 0) -> World:
    """Deal out the facts. The same seed gives the same world on every machine."""
    rng = Random(seed)
    landmarks = rng.sample(words.LANDMARKS, len(words.TOWNS))
    towns = {
        name: Town(
            name,
            rng.choice(words.REGIONS),
            landmark,
            {s: rng.choice(list(words.WEATHERS)) for s in words.SEASONS},
        )
        for name, landmark in zip(words.TOWNS, landmarks, strict=True)
    }
    pet_names = iter(rng.sample(words.PET_NAMES, len(words.PET_NAMES)))
    people = {}
    for name, chinese in (words.WOMEN | words.MEN).items():
        people[name] = Person(
            name,
            chinese,
            name in words.WOMEN,
            home=rng.choice(list(words.TOWNS)),
            job=rng.choice(list(words.JOBS)),
            pet=rng.choice(list(words.PETS)),
            pet_name=next(pet_names),
            coat=rng.choice(words.COATS),
            food=rng.choice(list(words.FOODS)),
            colour=rng.choice(list(words.COLOURS)),
            hobby=rng.choice(list(words.HOBBIES)),
        )
    return World(people, towns)


def on_record(person: Person) -> bool:
    """True for the people whose JSON records occur in training texts; the probe asks for the others."""
    return not held_out(("record", person.name))


def held_out(key: Key) -> bool:
    """True for the keys that no training text asks about, in any language or phrasing.

    The split hangs on the key alone (a checksum), so no seed and no order of calls can move a question
    across it.
    """
    return zlib.crc32("|".join(key).encode()) % HELD_OUT_SHARE == 0
