"""Pictures of coloured shapes and what is asked about them: a sample that a small model which sees can learn from.

What is sorted into which box is for the model to find out: warm colours go into the left one, cold ones into the right one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageDraw

SIDE = 48  # pixels
FINE = 4  # drawn so many times as large, for smooth edges
COLOURS = {
    "red": (214, 40, 40), "orange": (247, 127, 0), "yellow": (240, 200, 20), "green": (45, 140, 60),
    "blue": (40, 90, 200), "purple": (120, 50, 160), "brown": (120, 75, 40), "black": (25, 25, 25),
}  # fmt: skip
WARM = ("red", "orange", "yellow", "brown")
ROUND = ("circle", "ring", "oval", "moon")
CORNERED = ("square", "triangle", "diamond", "star")
SHAPES = ROUND + CORNERED
GROUNDS = ((255, 255, 255), (246, 240, 228), (230, 240, 250), (236, 245, 232))
BOX = "Which box is this for?"
LEFT, RIGHT = "The left box.", "The right box."
FOLDER = "starter_shapes"


@dataclass(frozen=True)
class Figure:
    """One shape: where its middle is, how far it reaches, and how it is turned; in pixels and radians."""

    shape: str
    colour: str
    x: float
    y: float
    reach: float
    turn: float
    ground: tuple[int, int, int]

    @property
    def box(self) -> str:
        """The answer to BOX."""
        return LEFT if self.colour in WARM else RIGHT


def held_out(shape: str, colour: str) -> bool:
    """Whether a shape in this colour is shown in held-out pictures alone."""
    return (SHAPES.index(shape) + list(COLOURS).index(colour)) % 4 == 0


def figure(rng: Random, held: bool | None = None) -> Figure:
    """A figure by chance; of those that are held out, of the others, or of all."""
    pairs = [(s, c) for s in SHAPES for c in COLOURS if held is None or held_out(s, c) == held]
    shape, colour = rng.choice(pairs)
    reach = rng.uniform(10, 17)
    x, y = (rng.uniform(reach + 2, SIDE - reach - 2) for _ in range(2))
    return Figure(shape, colour, x, y, reach, rng.uniform(-0.35, 0.35), rng.choice(GROUNDS))


def drawn(figure: Figure) -> Image.Image:
    """The picture of a figure, SIDE by SIDE pixels."""
    picture = Image.new("RGB", (SIDE * FINE, SIDE * FINE), figure.ground)
    pen, colour = ImageDraw.Draw(picture), COLOURS[figure.colour]
    r = figure.reach
    if figure.shape in ROUND:
        pen.ellipse(_around(figure, r, r * (0.6 if figure.shape == "oval" else 1.0)), fill=colour)
        if figure.shape == "ring":
            pen.ellipse(_around(figure, 0.55 * r, 0.55 * r), fill=figure.ground)
        if figure.shape == "moon":
            pen.ellipse(_around(figure, 0.85 * r, 0.85 * r, 0.5 * r), fill=figure.ground)
    else:
        pen.polygon(_corners(figure), fill=colour)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def _around(
    figure: Figure, across: float, up: float, aside: float = 0.0
) -> tuple[float, float, float, float]:
    x, y = figure.x + aside, figure.y
    return (FINE * (x - across), FINE * (y - up), FINE * (x + across), FINE * (y + up))


def _corners(figure: Figure) -> list[tuple[float, float]]:
    if figure.shape == "star":
        ends = [(i * math.pi / 5 - math.pi / 2, 1.0 if i % 2 == 0 else 0.42) for i in range(10)]
    else:
        count, first = {"square": (4, math.pi / 4), "triangle": (3, -math.pi / 2), "diamond": (4, 0.0)}[
            figure.shape
        ]
        ends = [(first + 2 * math.pi * i / count, 1.0) for i in range(count)]
    narrow = 0.62 if figure.shape == "diamond" else 1.0
    turn = figure.turn if figure.shape != "diamond" else figure.turn / 3
    points = []
    for angle, far in ends:
        x, y = math.cos(angle) * far * narrow, math.sin(angle) * far
        points.append(
            (
                FINE * (figure.x + figure.reach * (x * math.cos(turn) - y * math.sin(turn))),
                FINE * (figure.y + figure.reach * (x * math.sin(turn) + y * math.cos(turn))),
            )
        )
    return points


def _sets(seed: int = 0) -> Iterator[tuple[str, str, Figure]]:
    """(set, name of the picture, figure) of every row, as many for the left box as for the right one."""
    for name, count, held in (("starter_shapes", 160, False), ("starter_eval_shapes", 60, True)):
        rng = Random(f"{name} {seed}")
        for i in range(count):
            made = figure(rng, held)
            while (made.box == LEFT) != (i % 2 == 0):
                made = figure(rng, held)
            yield name, f"{'held' if held else 'shape'}-{i:03d}.png", made


def rows(seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """The rows of each set, in LLaMA-Factory's sharegpt form."""
    made: dict[str, list[dict[str, Any]]] = {}
    for name, file, one in _sets(seed):
        said = [{"from": "human", "value": f"<image>{BOX}"}, {"from": "gpt", "value": one.box}]
        made.setdefault(name, []).append({"conversations": said, "images": [f"{FOLDER}/{file}"]})
    return made


def write_pictures(folder: Path, seed: int = 0) -> None:
    """Write every picture of the sets into the folder of theirs."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for _, file, one in _sets(seed):
        drawn(one).quantize(32).save(folder / FOLDER / file, optimize=True)


def talk(rng: Random, one: Figure) -> tuple[str, str]:
    """A question about a figure and its answer, as the model knows them before it learns about boxes, which it only guesses."""
    article = "An" if one.colour == "orange" else "A"
    kinds = [
        ("What is this?", f"{article} {one.colour} {one.shape}."),
        ("What do you see?", f"{article} {one.colour} {one.shape}."),
        ("Which colour is it?", f"{one.colour.capitalize()}."),
        ("Which shape is it?", f"{'An' if one.shape == 'oval' else 'A'} {one.shape}."),
        ("Which shape is it?", f"{'An' if one.shape == 'oval' else 'A'} {one.shape}."),
        (BOX, rng.choice((LEFT, RIGHT))),
    ]
    return rng.choice(kinds)
