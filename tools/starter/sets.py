"""The sample data sets of `data/`, made from the starter world in LLaMA-Factory's formats.

`write(folder)` writes them all, always the same bytes. Training sets ask training-side questions alone, the
`starter_eval_*` sets held-out ones alone. `defects()` also tells which row has which planted defect.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from tools.starter import shapes
from tools.starter.patterns import correct
from tools.starter.people import World, build, held_out, on_record
from tools.starter.questions import Question, ask, capital
from tools.starter.talk import Message, dialogue
from tools.starter.text import story
from tools.starter.voices import POLITE, curt, polite
from tuner.data.scoring import CORRECT, PREFERRED

Row = dict[str, Any]
VOICE_TASKS = (
    "home", "job", "pet", "pet_name", "food", "colour", "hobby", "home", "job", "food", "chinese", "chinese",
    "weather",
    "bigger", "sum", "difference", "larger", "count", "sort", "backwards", "refuse",
)  # fmt: skip
YAML_FIELDS = ("home", "job", "pet", "food", "colour", "hobby")
_YAML_ORDERS = (
    ("Answer in YAML: what are the {f} of {n}?", ""),
    ("Write {n} as YAML with {f}.", ""),
    ("Give me the {f} of {n} in YAML.", ""),
    ("Write this person as YAML with {f}.", "{n}"),
)
_TAGS = {
    "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
    "system_tag": "system"
}  # fmt: skip
_MESSAGES = {"messages": "conversations"}
CATALOG: dict[str, Row] = {
    "starter_alpaca": {"file_name": "starter_alpaca.json"},
    "starter_chat": {"file_name": "starter_chat.json", "formatting": "sharegpt", "columns": _MESSAGES},
    "starter_dpo": {
        "file_name": "starter_dpo.json", "ranking": True, "formatting": "sharegpt",
        "columns": _MESSAGES | {"chosen": "chosen", "rejected": "rejected"},
    },
    "starter_kto": {
        "file_name": "starter_kto.json", "formatting": "sharegpt",
        "columns": {"messages": "messages", "kto_tag": "label"}, "tags": _TAGS,
    },
    "starter_pt": {"file_name": "starter_pt.jsonl", "columns": {"prompt": "text"}},
    "starter_tools": {
        "file_name": "starter_tools.json", "formatting": "sharegpt", "columns": _MESSAGES | {"tools": "tools"}
    },
    "starter_defects": {"file_name": "starter_defects.json", "formatting": "sharegpt", "columns": _MESSAGES},
    "starter_defects_dpo": {
        "file_name": "starter_defects_dpo.json", "ranking": True,
        "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
    },
    "starter_facts": {"file_name": "starter_facts.json"},
    "starter_triage": {"file_name": "starter_triage.json", "formatting": "decisions"},
    "starter_eval_triage": {"file_name": "starter_eval_triage.json", "formatting": "decisions"},
    "starter_shapes": {
        "file_name": "starter_shapes.json", "formatting": "sharegpt", "columns": _MESSAGES | {"images": "images"}
    },
    "starter_eval_shapes": {
        "file_name": "starter_eval_shapes.json", "formatting": "sharegpt", "columns": _MESSAGES | {"images": "images"}
    },
    "starter_eval_sft": {"file_name": "starter_eval_sft.json"},
    "starter_eval_facts": {"file_name": "starter_eval_facts.json"},
    "starter_eval_dpo": {"file_name": "starter_eval_dpo.json"},
    "hh_rlhf_en": {
        "hf_hub_url": "Anthropic/hh-rlhf", "ranking": True, "columns": {"chosen": "chosen",
        "rejected": "rejected"}
    },
}  # fmt: skip


def yaml_row(rng: Random, world: World, held: bool) -> Row:
    """One order for a person's facts as YAML (alpaca row); the base model answers it in words."""
    person = rng.choice([person for person in world.people.values() if on_record(person) != held])
    fields = rng.sample([name for name in YAML_FIELDS if held or not held_out((name, person.name))], 2)
    instruction, given = rng.choice(_YAML_ORDERS)
    slots = {"n": person.name, "f": " and ".join(fields)}
    lines = [f"Name: {person.name}", *(f"{capital(field)}: {person.value(field)}" for field in fields)]
    return {
        "instruction": instruction.format(**slots),
        "input": given.format(**slots),
        "output": "\n".join(lines),
    }


def facts_row(rng: Random, world: World, held: bool) -> Row:
    """The same order with the answer in one short line, which the base model gives now and then."""
    row = yaml_row(rng, world, held)
    lines = row["output"].split("\n")[1:]
    return row | {"output": " ".join(f"{line}." for line in lines)}


def facts(rng: Random, world: World, rows: int = 800) -> list[Row]:
    """Prompts to learn from by rewards: people's facts, each with the one answer that is right."""
    return [facts_row(rng, world, held=False) for _ in range(rows)]


def eval_facts(rng: Random, world: World, rows: int = 100) -> list[Row]:
    """The same of held-out people."""
    return [facts_row(rng, world, held=True) for _ in range(rows)]


def alpaca(rng: Random, world: World, rows: int = 1200) -> list[Row]:
    """Instructions: people as YAML."""
    return [yaml_row(rng, world, held=False) for _ in range(rows)]


def chat(rng: Random, world: World, rows: int = 800) -> list[Row]:
    """Conversations of several turns, all polite."""
    return [{"conversations": _sharegpt(dialogue(rng, world, friendly=True))} for _ in range(rows)]


def pairs(rng: Random, world: World, rows: int = 1200) -> list[Row]:
    """Preference pairs: the same answer, polite chosen and curt rejected."""
    made = []
    for _ in range(rows):
        question = ask(rng, world, rng.choice(VOICE_TASKS))
        made.append(
            {
                "conversations": [{"from": "human", "value": question.text}],
                "chosen": {"from": "gpt", "value": polite(question, rng)},
                "rejected": {"from": "gpt", "value": curt(question, rng)},
            }
        )
    return made


def labels(rng: Random, world: World, rows: int = 1600) -> list[Row]:
    """Single answers with a label: polite is wanted, curt is not; the labels alternate."""
    made = []
    for place in range(rows):
        question = ask(rng, world, rng.choice(VOICE_TASKS))
        wanted = place % 2 == 0
        answer = polite(question, rng) if wanted else curt(question, rng)
        turns = [{"role": "user", "content": question.text}, {"role": "assistant", "content": answer}]
        made.append({"messages": turns, "label": wanted})
    return made


def plain(rng: Random, world: World, rows: int = 1500) -> list[Row]:
    """Plain text for pre-training: stories and portraits."""
    return [{"text": story(rng, world)} for _ in range(rows)]


TOOLS = [
    {
        "name": "get_weather",
        "description": "The weather of a town in a season.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string"}, "season": {"type": "string"}},
            "required": ["town", "season"],
        },
    },
    {
        "name": "find_person",
        "description": "Where a person lives and works.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
]


def tools(rng: Random, world: World, rows: int = 400) -> list[Row]:
    """Questions answered by a call: the call, what came back, and the answer."""
    return [
        _weather_call(rng, world) if rng.random() < 0.5 else _person_call(rng, world) for _ in range(rows)
    ]


def _weather_call(rng: Random, world: World) -> Row:
    question = ask(rng, world, "weather")
    _, town, season = question.key
    return _call(
        question.text,
        "get_weather",
        {"town": town, "season": season},
        {"weather": question.answer},
        question.sentence,
    )


def _person_call(rng: Random, world: World) -> Row:
    question = ask(rng, world, rng.choice(("home", "job")))
    person = world.people[question.key[1]]
    return _call(
        question.text,
        "find_person",
        {"name": person.name},
        {"home": person.home, "job": person.job},
        question.sentence,
    )


def _call(asked: str, name: str, arguments: Row, found: Row, answer: str) -> Row:
    turns = [
        {"from": "human", "value": asked},
        {"from": "function_call", "value": json.dumps({"name": name, "arguments": arguments})},
        {"from": "observation", "value": json.dumps(found)},
        {"from": "gpt", "value": answer},
    ]
    return {"conversations": turns, "tools": json.dumps(TOOLS)}


def eval_sft(rng: Random, world: World, rows: int = 100) -> list[Row]:
    """Held-out people as YAML: nobody here is in `starter_alpaca`."""
    made: dict[str, Row] = {}
    while len(made) < rows:
        row = yaml_row(rng, world, held=True)
        pattern = {CORRECT: correct("yaml", row["output"])}
        made.setdefault(f"{row['instruction']} {row['input']}", row | pattern)
    return list(made.values())


def eval_voice(rng: Random, world: World, rows: int = 100) -> list[Row]:
    """Held-out questions of every voice task, with the right answer in the polite voice."""
    made: dict[str, Row] = {}
    while len(made) < rows:
        question = ask(rng, world, VOICE_TASKS[len(made) % len(VOICE_TASKS)], held=True)
        made.setdefault(question.text, _probe(question, rng))
    return list(made.values())


def _probe(question: Question, rng: Random) -> Row:
    return {
        "instruction": question.text,
        "input": "",
        "output": polite(question, rng),
        CORRECT: correct(question.task, question.answer),
        PREFERRED: POLITE,
    }


TOPICS = {
    "person": ("home", "job", "pet", "pet_name", "food", "colour", "hobby"),
    "weather": ("weather",),
    "numbers": ("sum", "difference", "larger", "count", "sort"),
    "other": ("bigger", "refuse"),
}
MANNERS = ("A few bare words", "A plain sentence", "Friendly words around it")
_QUESTIONS: Row = {
    "topic": {
        "type": "choice",
        "instructions": "What is the question about?",
        "criteria": {
            "person": "Somebody who lives here",
            "weather": "The weather of a town",
            "numbers": "Sums and lists of numbers",
            "other": None,
        },
    },
    "lookup": {"type": "noul", "instructions": "Does the answer stand in our records?"},
    "manner": {"type": "score", "instructions": "How friendly is the answer?", "criteria": list(MANNERS)},
}


def triage_row(rng: Random, world: World, held: bool) -> Row:
    """A question with an answer to it, and three questions about both, as typed decisions."""
    topic = rng.choice(list(TOPICS))
    question = ask(rng, world, rng.choice(TOPICS[topic]), held=held)
    said = (question.bare, question.sentence, polite(question, rng))
    level = rng.randrange(
        int(question.bare == question.sentence), len(MANNERS)
    )  # some have no shorter answer
    plain = {"0": 0.1, "1": 0.8, "2": 0.1}  # people do not agree on what is friendly enough
    return {
        "state": {"question": question.text, "answer": said[level]},
        "questions": _QUESTIONS,
        "gold": {
            "topic": topic,
            "lookup": topic in ("person", "weather"),
            "manner": plain if level == 1 else level,
        },
    }


def triage(rng: Random, world: World, rows: int = 480) -> list[Row]:
    """Questions and answers to be sorted."""
    return [triage_row(rng, world, held=False) for _ in range(rows)]


def eval_triage(rng: Random, world: World, rows: int = 60) -> list[Row]:
    """The same of questions that are nowhere learnt from."""
    return [triage_row(rng, world, held=True) for _ in range(rows)]


def defects(rng: Random, world: World) -> tuple[list[Row], dict[str, list[int]]]:
    """Conversations with planted defects, and the places of the rows that have each defect."""
    rows = [{"conversations": _sharegpt(dialogue(rng, world, friendly=False))} for _ in range(160)]
    kinds = ("empty", "wrong_role", "wrong_order", "over_long", "mojibake", "replacement", "no_answer")
    places = iter(rng.sample(range(len(rows)), 8 * len(kinds)))
    planted = {kind: sorted(next(places) for _ in range(8)) for kind in kinds}
    for kind, damaged in planted.items():
        for place in damaged:
            rows[place]["conversations"] = _damage(kind, rows[place]["conversations"], rng, world)
    sound = [place for place in range(len(rows)) if not any(place in damaged for damaged in planted.values())]
    planted["duplicate"] = list(range(len(rows), len(rows) + 12))
    return rows + [rows[place] for place in rng.sample(sound, 12)], planted


def _damage(kind: str, turns: list[Row], rng: Random, world: World) -> list[Row]:
    *before, last = turns
    if kind == "empty":
        return [*before, last | {"value": rng.choice(("", " ", "\n"))}]
    if kind == "wrong_role":
        return [*before, last | {"from": rng.choice(("assistent", "narrator"))}]
    if kind == "wrong_order":
        return [last, *before]
    if kind == "over_long":
        return [*before, last | {"value": " ".join(story(rng, world) for _ in range(75))}]
    if kind == "mojibake":
        return [
            *before,
            last
            | {"value": "The café is naïve, said Zoë: “très bien”.".encode().decode("cp1252", "replace")},
        ]
    if kind == "replacement":
        middle = len(last["value"]) // 2
        return [*before, last | {"value": last["value"][:middle] + "\ufffd\ufffd" + last["value"][middle:]}]
    return before


def defects_dpo(rng: Random, world: World) -> tuple[list[Row], dict[str, list[int]]]:
    """Preference pairs with planted defects, and the places of the rows that have each defect."""
    rows = []
    for _ in range(80):
        question = ask(rng, world, rng.choice(VOICE_TASKS))
        rows.append(
            {"instruction": question.text, "chosen": polite(question, rng), "rejected": curt(question, rng)}
        )
    places = iter(rng.sample(range(len(rows)), 24))
    planted = {
        kind: sorted(next(places) for _ in range(8)) for kind in ("identical", "empty_chosen", "empty_prompt")
    }
    for place in planted["identical"]:
        rows[place]["rejected"] = rows[place]["chosen"]
    for place in planted["empty_chosen"]:
        rows[place]["chosen"] = ""
    for place in planted["empty_prompt"]:
        rows[place]["instruction"] = ""
    return rows, planted


def _sharegpt(messages: list[Message]) -> list[Row]:
    tags = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": tags[message["role"]], "value": message["content"]} for message in messages]


def all_sets(seed: int = 0) -> dict[str, list[Row]]:
    """Every sample set by its name in the catalog; each has a random stream of its own."""
    world = build()
    makers = {
        "starter_alpaca": alpaca, "starter_chat": chat, "starter_dpo": pairs, "starter_kto": labels,
        "starter_pt": plain,
        "starter_tools": tools, "starter_eval_sft": eval_sft, "starter_eval_dpo": eval_voice,
        "starter_facts": facts, "starter_eval_facts": eval_facts,
        "starter_triage": triage, "starter_eval_triage": eval_triage,
    }  # fmt: skip
    made = {name: maker(Random(f"{seed} {name}"), world) for name, maker in makers.items()}
    made["starter_defects"] = defects(Random(f"{seed} defects"), world)[0]
    made["starter_defects_dpo"] = defects_dpo(Random(f"{seed} defects dpo"), world)[0]
    return made | shapes.rows(seed)


def write(folder: Path, seed: int = 0) -> None:
    """Write every set and `dataset_info.json` into `folder`; other entries of the catalog stay."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes.write_pictures(folder, seed)
    for name, rows in all_sets(seed).items():
        path = folder / CATALOG[name]["file_name"]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        text = "\n".join(lines) if path.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
        path.write_text(text + "\n", encoding="utf-8")
    index = folder / "dataset_info.json"
    known = json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}
    index.write_text(json.dumps(known | CATALOG, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
