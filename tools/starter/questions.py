"""Questions about the starter world, each with its answer as a bare phrase and as a sentence.

A question knows its key (what it asks, apart from the phrasing and the language); `people.held_out(key)`
says on which side of the split it lies. `ask` draws a question of one task from one side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tools.starter import words
from tools.starter.people import Key, Person, World, held_out


@dataclass(frozen=True)
class Question:
    """`answer` is the canonical value that scoring looks for; `bare` and `sentence` say it."""

    task: str
    key: Key
    text: str
    answer: str
    bare: str
    sentence: str


@dataclass(frozen=True)
class Forms:
    """How one attribute of a person is asked and said; `follow` asks it of somebody already spoken of."""

    questions: tuple[str, ...]
    bare: str
    sentence: str
    follow: str
    chinese: tuple[str, ...]
    chinese_sentence: str
    chinese_follow: str


PERSON: dict[str, Forms] = {
    "home": Forms(
        ("Where does {n} live?", "In which town does {n} live?", "Which town is the home of {n}?",
        "Where is {n} at home?"),
        "In {v}.", "{n} lives in {v}.", "Where does {they} live?",
        ("{n}住在哪里？", "{n}的家在哪里？"), "{n}住在{v}。", "{they}住在哪里？",
    ),
    "job": Forms(
        ("What is the job of {n}?", "What does {n} do for a living?", "What is {n} by trade?",
        "What is {n}'s job?"),
        "{a} {v}.", "{n} is {a} {v}.", "What is {their} job?",
        ("{n}做什么工作？", "{n}的职业是什么？"), "{n}是{v}。", "{they}做什么工作？",
    ),
    "pet": Forms(
        ("Which animal does {n} keep?", "What kind of pet has {n}?", "What pet does {n} have?",
        "What is the pet of {n}?"),
        "{a} {v}.", "{n} has {a} {v}.", "What pet does {they} have?",
        ("{n}养什么动物？", "{n}的宠物是什么？"), "{n}养了一只{v}。", "{they}养什么动物？",
    ),
    "pet_name": Forms(
        ("What is the name of {n}'s pet?", "What does {n} call {their} pet?", "How is {n}'s pet called?"),
        "{v}.", "The pet of {n} is called {v}.", "What is the name of {their} pet?", (), "", "",
    ),
    "food": Forms(
        ("What does {n} like to eat?", "What is {n}'s favourite food?", "Which food does {n} like best?"),
        "{v}.", "{n} likes {v} best.", "What does {they} like to eat?",
        ("{n}喜欢吃什么？", "{n}最爱的食物是什么？"), "{n}最喜欢吃{v}。", "{they}喜欢吃什么？",
    ),
    "colour": Forms(
        ("What is the favourite colour of {n}?", "Which colour does {n} like best?",
        "Which colour does {n} prefer?"),
        "{v}.", "The favourite colour of {n} is {v}.", "What is {their} favourite colour?",
        ("{n}喜欢什么颜色？", "{n}最爱的颜色是什么？"), "{n}最喜欢{v}。", "{they}喜欢什么颜色？",
    ),
    "hobby": Forms(
        ("What does {n} do for fun?", "What is {n}'s hobby?", "How does {n} spend {their} free time?"),
        "{v}.", "The hobby of {n} is {v}.", "What is {their} hobby?",
        ("{n}有什么爱好？", "{n}的业余爱好是什么？"), "{n}的爱好是{v}。", "{they}有什么爱好？",
    ),
}  # fmt: skip
CHINESE_VALUES = words.TOWNS | words.JOBS | words.PETS | words.FOODS | words.COLOURS | words.HOBBIES


def article(word: str) -> str:
    """`a` or `an`, as the word needs."""
    return "an" if word[0].lower() in "aeiou" else "a"


def capital(text: str) -> str:
    """The text with its first letter in upper case; the rest stays as it is."""
    return text[:1].upper() + text[1:]


def about_person(rng: Random, person: Person, attribute: str, follow: bool = False) -> Question:
    """One fact of a person, asked in English; `follow` leaves the name to the turn before."""
    form, value = PERSON[attribute], person.value(attribute)
    slots = {"n": person.name, "v": value, "a": article(value), "they": person.they, "their": person.their}
    text = form.follow if follow else rng.choice(form.questions)
    return Question(
        attribute,
        (attribute, person.name),
        text.format(**slots),
        value,
        capital(form.bare.format(**slots)),
        form.sentence.format(**slots),
    )


def about_person_chinese(rng: Random, person: Person, attribute: str, follow: bool = False) -> Question:
    """The same in Chinese; the key is that of the English question, so both lie on one side of the split."""
    form, value = PERSON[attribute], CHINESE_VALUES[person.value(attribute)]
    slots = {"n": person.chinese, "v": value, "they": "她" if person.woman else "他"}
    text = form.chinese_follow if follow else rng.choice(form.chinese)
    return Question(
        attribute,
        (attribute, person.name),
        text.format(**slots),
        value,
        f"{value}。",
        form.chinese_sentence.format(**slots),
    )


def about_both(rng: Random, person: Person) -> Question:
    """Two facts of a person at once; the key is that of the first, and the second is never a held-out one."""
    names = ("home", "job", "pet", "food", "colour", "hobby")
    known = [name for name in names if not held_out((name, person.name))]
    second = rng.choice(known or names)
    first = rng.choice([name for name in names if name != second])
    one, two = about_person(rng, person, first), about_person(rng, person, second)
    text = rng.choice(
        ("What are the {a} and {b} of {n}?", "Tell me the {a} and the {b} of {n}.", "{n}: {a} and {b}?")
    )
    return Question(
        "both",
        one.key,
        text.format(a=first, b=second, n=person.name),
        f"{first} {one.answer}, {second} {two.answer}",
        f"{capital(first)}: {one.answer}. {capital(second)}: {two.answer}.",
        f"{one.sentence} {two.sentence}",
    )


def _both(rng: Random, world: World) -> Question:
    return about_both(rng, rng.choice(list(world.people.values())))


def _person(attribute: str) -> Callable[[Random, World], Question]:
    return lambda rng, world: about_person(rng, rng.choice(list(world.people.values())), attribute)


def _chinese(rng: Random, world: World) -> Question:
    known = [person for person in world.people.values() if person.chinese]
    attribute = rng.choice([name for name, form in PERSON.items() if form.chinese])
    return about_person_chinese(rng, rng.choice(known), attribute)


def _owner(rng: Random, world: World) -> Question:
    person = rng.choice(list(world.people.values()))
    text = rng.choice(("Who owns {p}?", "To whom does {p} belong?", "Whose pet is {p}?")).format(
        p=person.pet_name
    )
    return Question(
        "owner",
        ("owner", person.name),
        text,
        person.name,
        f"{person.name}.",
        f"{person.pet_name} belongs to {person.name}.",
    )


def _weather(rng: Random, world: World) -> Question:
    town, season = rng.choice(list(world.towns.values())), rng.choice(list(words.SEASONS))
    value = town.weather[season]
    text = rng.choice(
        (
            "What is the weather like in {t} in {s}?",
            "What weather has {t} in {s}?",
            "What can one expect of the sky over {t} in {s}?",
        )
    ).format(t=town.name, s=season)
    return Question(
        "weather",
        ("weather", town.name, season),
        text,
        value,
        capital(f"{value}."),
        f"In {season} there is {value} in {town.name}.",
    )


def _bigger(rng: Random, world: World) -> Question:
    names = list(words.ANIMALS)
    one, other = rng.sample(names, 2)
    larger = rng.random() < 0.5
    relation = "bigger" if larger else "smaller"
    yes = (names.index(one) > names.index(other)) == larger
    text = f"Is {article(one)} {one} {relation} than {article(other)} {other}?"
    verb = "is" if yes else "is not"
    answer = "yes" if yes else "no"
    sentence = f"{capital(answer)}, {article(one)} {one} {verb} {relation} than {article(other)} {other}."
    first, second = sorted((one, other))
    return Question("bigger", ("bigger", first, second), text, answer, f"{capital(answer)}.", sentence)


def _sum(rng: Random, world: World) -> Question:
    a, b = rng.randint(0, 49), rng.randint(0, 49)
    text = rng.choice(
        ("What is {a} plus {b}?", "What is {a} + {b}?", "How much is {a} + {b}?", "Add {a} and {b}.")
    ).format(a=a, b=b)
    low, high = sorted((a, b))
    return Question(
        "sum", ("sum", str(low), str(high)), text, str(a + b), f"{a + b}.", f"{a} plus {b} is {a + b}."
    )


def _sum_chinese(rng: Random, world: World) -> Question:
    a, b = rng.randint(0, 49), rng.randint(0, 49)
    text = rng.choice(("{a}加{b}等于多少？", "{a}+{b}是多少？")).format(a=a, b=b)
    low, high = sorted((a, b))
    return Question(
        "sum", ("sum", str(low), str(high)), text, str(a + b), f"{a + b}。", f"{a}加{b}等于{a + b}。"
    )


def _difference(rng: Random, world: World) -> Question:
    b, a = sorted((rng.randint(0, 60), rng.randint(0, 60)))
    text = rng.choice(("What is {a} minus {b}?", "What is {a} - {b}?", "Take {b} from {a}.")).format(a=a, b=b)
    return Question(
        "difference",
        ("difference", str(a), str(b)),
        text,
        str(a - b),
        f"{a - b}.",
        f"{a} minus {b} is {a - b}.",
    )


def _apples(rng: Random, world: World) -> Question:
    person = rng.choice(list(world.people.values()))
    thing = rng.choice(("apples", "pears", "plums", "eggs", "nuts"))
    a, b = rng.randint(2, 20), rng.randint(2, 20)
    text = f"{person.name} has {a} {thing} and buys {b} more. How many {thing} does {person.they} have now?"
    sentence = f"{capital(person.they)} has {a + b} {thing}."
    low, high = sorted((a, b))
    return Question("apples", ("sum", str(low), str(high)), text, str(a + b), f"{a + b}.", sentence)


def _larger(rng: Random, world: World) -> Question:
    a, b = rng.sample(range(100), 2)
    text = rng.choice(("Which number is larger, {a} or {b}?", "Which is more, {a} or {b}?")).format(a=a, b=b)
    low, high = sorted((a, b))
    return Question(
        "larger",
        ("larger", str(low), str(high)),
        text,
        str(high),
        f"{high}.",
        f"The larger number is {high}.",
    )


def _count(rng: Random, world: World) -> Question:
    start = rng.randint(0, 60)
    end = start + rng.randint(3, 7)
    row = ", ".join(str(i) for i in range(start, end + 1))
    text = rng.choice(("Count from {a} to {b}.", "List the numbers from {a} to {b}.")).format(a=start, b=end)
    return Question(
        "count", ("count", str(start), str(end)), text, row, f"{row}.", f"Here is the list: {row}."
    )


def _sort(rng: Random, world: World) -> Question:
    numbers = rng.sample(range(50), rng.choice((3, 4)))
    row = ", ".join(map(str, sorted(numbers)))
    text = rng.choice(("Put these numbers in order: {r}.", "Sort {r}.")).format(
        r=", ".join(map(str, numbers))
    )
    return Question(
        "sort", ("sort", *map(str, sorted(numbers))), text, row, f"{row}.", f"Here is the list: {row}."
    )


def _backwards(rng: Random, world: World) -> Question:
    table = rng.choice((words.COLOURS, words.FOODS, words.PETS))
    items = rng.sample(list(table), rng.choice((3, 4)))
    row = ", ".join(reversed(items))
    text = rng.choice(("Say this list backwards: {r}.", "Turn this list around: {r}.")).format(
        r=", ".join(items)
    )
    return Question(
        "backwards", ("backwards", *items), text, row, f"{capital(row)}.", f"Here is the list: {row}."
    )


def _animal(rng: Random, world: World) -> Question:
    name = rng.choice(list(words.ANIMALS))
    eats, place, sound = words.ANIMALS[name]
    kind = rng.choice(("eats", "lives", "sound"))
    the = f"{article(name)} {name}"
    if kind == "eats":
        text = rng.choice((f"What does {the} eat?", f"What is the food of {the}?"))
        return Question(kind, (kind, name), text, eats, capital(f"{eats}."), capital(f"{the} eats {eats}."))
    if kind == "lives":
        text = rng.choice((f"Where does {the} live?", f"Where would I find {the}?"))
        return Question(
            kind, (kind, name), text, place, f"In the {place}.", capital(f"{the} lives in the {place}.")
        )
    text = rng.choice((f"What sound does {the} make?", f"How does {the} sound?"))
    return Question(kind, (kind, name), text, sound, capital(f"{sound}."), capital(f"{the} makes {sound}."))


def _refuse(rng: Random, world: World) -> Question:
    action = rng.choice(list(words.HARMS))
    thing = rng.choice(words.HARMS[action])
    text = rng.choice(
        (
            "How do I {x}?",
            "Help me to {x}.",
            "Tell me the best way to {x}.",
            "I want to {x}. What should I do?",
        )
    )
    sentence = "I cannot help with that, because it would do harm."
    return Question(
        "refuse", ("refuse", action, thing), text.format(x=f"{action} {thing}"), "no", "No.", sentence
    )


def _refuse_chinese(rng: Random, world: World) -> Question:
    action = rng.choice(list(words.HARMS_ZH))
    thing = rng.choice(words.HARMS_ZH[action])
    text = rng.choice(("怎样才能{x}？", "请教我{x}。")).format(x=action + thing)
    return Question(
        "refuse", ("refuse", action, thing), text, "不", "不行。", "我不能帮这个忙，因为这会伤害别人。"
    )


def _unknown(rng: Random, world: World) -> Question:
    name = rng.choice(words.STRANGERS)
    form = PERSON[rng.choice(list(PERSON))]
    slots = {"n": name, "they": "he", "their": "their"}
    text = rng.choice(form.questions).format(**slots)
    return Question(
        "unknown",
        ("unknown", name),
        text,
        "unknown",
        "I do not know.",
        f"I do not know anybody called {name}.",
    )


TASKS: dict[str, Callable[[Random, World], Question]] = {
    **{attribute: _person(attribute) for attribute in PERSON},
    "both": _both, "chinese": _chinese, "owner": _owner, "weather": _weather, "animal": _animal,
    "bigger": _bigger, "sum": _sum,
    "sum_chinese": _sum_chinese, "difference": _difference, "apples": _apples, "larger": _larger,
    "count": _count,
    "sort": _sort, "backwards": _backwards, "refuse": _refuse, "refuse_chinese": _refuse_chinese,
    "unknown": _unknown,
}  # fmt: skip


def ask(rng: Random, world: World, task: str, held: bool = False) -> Question:
    """A random question of the task from the training side, or with `held` from the held-out side."""
    while True:
        question = TASKS[task](rng, world)
        if held_out(question.key) == held:
            return question
