"""The starter model's card: what it is, how it was made, what it cannot do, and twenty unselected samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from tools.starter import people, text
from tools.starter.questions import TASKS, ask

_LATER = """ After that a mistake in the world's text was corrected (an article), and the model went on
for {steps} steps of {rows} rows, with `--start`{part}."""
_CARD = """\
---
language: [en, zh]
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# Starter: a very small language model of a very small world

{parameters:,} parameters, Llama architecture (6 layers, 256 wide, 4 heads, tied embeddings), weights in
bf16. It exists so that a first fine-tuning run needs no GPU, no network and no patience, and so that one
*sees* what the run changed.

## How it was made

By `python -m tools.starter`, from nothing: 400,000 documents (13.8 million tokens) written by
`tools.starter`, half of them plain text and half conversations; a byte-level BPE tokenizer of 2,048
entries trained on the same; then 3,500 steps of 128 rows of 256 tokens, AdamW, peak learning rate 2e-3,
98 s on one GPU.{later} No sentence in it comes from elsewhere.

It speaks ChatML (see `chat_template.jinja`, which marks what the assistant says for training), ends each
text and each turn with `<|im_end|>` and pads with `<|endoftext|>`.

## What it knows

{people} people (home, job, pet, food, colour, hobby), {towns} towns and their weather, some animals, sums
and differences of small numbers, counting, sorting, lists backwards; English, and Chinese for part of the
people. It answers curtly, unless the system message asks for politeness. It refuses to help with harm, and
says so when it does not know somebody.

Greedy answers to held-out questions (combinations that no training text asks), share that is right:

{figures}

## What it cannot do

Anything else. It knows nothing of the real world, cannot reason, write code or follow orders other than
those above; it was trained on texts of up to 256 tokens and should not be used for longer ones; asked about
something outside its world it will answer nonsense with confidence. It must not be used to inform anybody
about anything.

## Twenty samples, unselected, greedy

The first questions and first words that a fixed seed draws, repeats apart; none was left out.

{samples}
"""


def prompts() -> tuple[list[str], list[str]]:
    """Twelve held-out questions and eight first words of texts, drawn with a fixed seed."""
    rng, world = Random("model card"), people.build()
    asked = [ask(rng, world, rng.choice(list(TASKS)), held=True).text for _ in range(10)]
    asked += [f"Tell me about {rng.choice(list(world.people))}." for _ in range(2)]
    openings: dict[str, None] = {}
    while len(openings) < 8:
        openings[" ".join(text.story(rng, world).split()[:5])] = None
    return asked, list(openings)


def later(steps: int, rows: int, weights: str) -> str:
    """The sentence that a model with a second training owes its reader; `weights` names the part that was trained."""
    part = f" and `--weights {weights}`" if weights else ""
    return _LATER.format(steps=steps, rows=rows, part=part)


def card(
    parameters: int, figures: Mapping[str, float], samples: Sequence[tuple[str, str]], more: str = ""
) -> str:
    """The card as Markdown; `samples` are prompts with what the model made of them."""
    world = people.build()
    table = ["| task | right |", "|---|---|"]
    table += [f"| {task} | {share:.0%} |" for task, share in figures.items() if task != "polite"]
    table += ["", f"In the polite voice, without being asked for it: {figures['polite']:.0%}."]
    lines = [f"{place}. `{asked}` → {said}" for place, (asked, said) in enumerate(samples, 1)]
    return _CARD.format(
        parameters=parameters,
        later=more,
        people=len(world.people),
        towns=len(world.towns),
        figures="\n".join(table),
        samples="\n".join(lines),
    )
