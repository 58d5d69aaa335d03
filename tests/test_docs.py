"""The pages: what is generated is up to date, and no link leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import knobs
from tuner.config.config import KNOBS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


def test_the_reference_of_knobs_is_what_their_declarations_say() -> None:
    assert knobs.FILE.read_text(encoding="utf-8") == knobs.page(), (
        "docs/knobs.md is out of date; run: python -m tools.knobs"
    )


def test_the_reference_has_every_knob_once() -> None:
    rows = re.findall(r"^\| `(\w+)`<br>.*\|$", knobs.page(), re.MULTILINE)
    others = [name for section in knobs.others() for name in section.model_fields]
    assert sorted(rows) == sorted([*KNOBS, *others])


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"
