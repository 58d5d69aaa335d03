"""What who cannot see, or has no mouse, or a small window, needs of every page: names, contrast, focus, room."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
axe = pytest.importorskip(
    "axe_playwright_python", reason="axe-playwright-python is not installed; pip install -e .[dev]"
)
from conftest import still  # noqa: E402

from tuner.config.config import form_sections  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.browser
AXE = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
VALUES = {"model_name_or_path": "models/tiny", "dataset": "pairs"}
PAGES = {
    "home": "",
    "datasets": "datasets?dataset=pairs",
    "seen": "datasets?dataset=pairs&view=What+the+model+sees",
    "report": "datasets?dataset=pairs&view=Report",
    "new run": "&".join(("new_run?level=Advanced", *(f"open={one.__name__}" for one in form_sections()))),
    "runs": "runs",
    "charts": "runs?run={first}",
    "log": "runs?run={first}&tab=Log",
    "config": "runs?run={first}&tab=Config",
    "details": "runs?run={first}&tab=Details",
    "compare": "compare?run={first}&run={second}",
    "history": "history?disk=true",
    "adapters": "adapters",
    "chat": "chat",
    "arena": "arena",
    "evaluate": "evaluate",
    "settings": "settings",
}
OVERFLOWING = """() => {
  const inside = (box) => box.getBoundingClientRect().right <= innerWidth + 1;
  const scrolls = (box) => /auto|scroll/.test(getComputedStyle(box).overflowX) || (getComputedStyle(box).overflowX === "hidden" && inside(box));
  const held = (node) => { for (let up = node.parentElement; up.dataset.testid !== "stMain"; up = up.parentElement) if (scrolls(up)) return true; return false; };
  const all = [...document.querySelectorAll("[data-testid=stMain] *")].filter((one) => one.offsetWidth && one.offsetHeight);
  return all.filter((one) => !inside(one) && !held(one)).map((one) => one.outerHTML.slice(0, 160));
}"""
MARKED = """async () => {
  const drawn = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const style = (one) => { const s = getComputedStyle(one); return [s.outlineStyle, s.outlineWidth, s.boxShadow, s.borderColor, s.backgroundColor].join(); };
  const one = document.activeElement;
  if (one.id === "stMain" || one === document.body) return ""; // the page itself, which the arrow keys scroll
  const chain = [...one.parentElement.children];
  for (let up = one, i = 0; up && i < 6; up = up.parentElement, i++) chain.push(up);
  const before = chain.map(style);
  one.blur();
  await drawn();
  const marked = chain.some((part, i) => style(part) !== before[i]);
  one.focus();
  await drawn();
  return marked ? "" : one.outerHTML.slice(0, 200);
}"""


def opened(studio, page, address: str) -> None:
    page.goto(f"{studio.url}/{address}")
    expect(page.locator('[data-testid="stSidebarNavItems"][role="none"]')).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    still(page)


def faults(page, *rules: str) -> list[str]:
    """What axe-core calls serious or critical on the page as it is; `rules` are all unless some are named."""
    page.evaluate(AXE)
    only = {"runOnly": list(rules)} if rules else {}
    found = page.evaluate("how => axe.run(document, how)", only | {"resultTypes": ["violations"]})
    bad = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    return [f"{v['id']}: {node['html'][:200]}" for v in bad for node in v["nodes"]]


def both_modes(page) -> list[str]:
    found = faults(page)
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    page.wait_for_function("getComputedStyle(document.querySelector('.stApp')).colorScheme === 'dark'")
    still(page)
    found += faults(page, "color-contrast")
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    return found


def test_the_largest_page_has_no_serious_fault(studio, page) -> None:
    opened(studio, page, PAGES["new run"])
    assert both_modes(page) == []
    page.set_viewport_size({"width": 900, "height": 700})
    assert page.evaluate(OVERFLOWING) == []


@pytest.mark.slow
def test_no_page_has_a_serious_fault(studio, page, record) -> None:
    ids = {"first": record("first", **VALUES), "second": record("second", **VALUES)}
    found = {}
    for name, address in PAGES.items():
        opened(studio, page, address.format(**ids))
        found[name] = both_modes(page)
    assert {name: said for name, said in found.items() if said} == {}


@pytest.mark.slow
def test_a_small_window_cuts_nothing_and_shows_the_form_first(studio, page, record) -> None:
    ids = {"first": record("first", **VALUES), "second": record("second", **VALUES)}
    page.set_viewport_size({"width": 900, "height": 600})  # 1440 by 960 enlarged to 160% has as much room
    for address in PAGES.values():
        opened(studio, page, address.format(**ids))
        assert page.evaluate(OVERFLOWING) == [], address
    opened(studio, page, "new_run")
    form, card = page.locator(".st-key-card-section-Model"), page.locator(".st-key-card-run")
    assert form.bounding_box()["y"] < card.bounding_box()["y"]


@pytest.mark.slow
def test_the_form_is_reached_and_read_without_a_mouse(studio, page, record) -> None:
    opened(studio, page, f"new_run?clone={record('first', **VALUES)}")
    expect(page.get_by_role("button", name="Launch")).to_be_enabled()
    unseen, names = [], set()
    for _ in range(140):
        page.keyboard.press("Tab")
        unseen.append(page.evaluate(MARKED))
        names.add(
            page.evaluate(
                "document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText.trim().split('\\n').at(-1)"
            )
        )
        if "Launch" in names and "Copy to clipboard" in names:
            break
    assert not list(filter(None, unseen))
    assert {"Learning rate", "LoRA rank", "Stage", "Name", "Launch"} <= names, names
    spoken = page.evaluate(
        "[...document.querySelectorAll('[aria-label]')].map(e => e.getAttribute('aria-label'))"
    )
    assert not [name for name in spoken if re.search(r":\w+\[|\\|● | icon$", name)]


@pytest.mark.slow
def test_a_dashboard_that_is_gone_says_that_runs_go_on(studio, page) -> None:
    opened(studio, page, "chat")
    studio.kill()
    gone = page.get_by_role("dialog")
    expect(gone).to_contain_text("Your runs go on")
    expect(gone).to_contain_text("tuner webui")
    expect(gone).not_to_contain_text("internet")
    studio.start()
    expect(gone).to_be_hidden(timeout=120_000)
