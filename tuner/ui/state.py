"""What a page remembers: in the URL, or in a draft on disk. Session state only mirrors them, for it dies at a refresh."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import streamlit as st
import yaml

from tuner import paths
from tuner.config.aliases import renamed
from tuner.config.config import KNOBS
from tuner.config.knobs import ConfigError
from tuner.config.reading import read
from tuner.config.writing import dump, to_yaml
from tuner.redact import redacted
from tuner.runs.files import replace_text
from tuner.text.lookup import LANGUAGES, catalogue, tr


def drafts() -> Path:
    """The folder of drafts: what was typed and not launched yet."""
    return paths.mlruns() / "drafts"


def saved() -> Path:
    """The folder of configs saved by name: plain YAML that `tuner train` takes."""
    return paths.home() / "configs"


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Safe, and where libyaml is there several times faster."""


def load_draft(name: str) -> dict[str, Any]:
    """A draft's values; empty where there is none or it cannot be read."""
    with suppress(OSError, yaml.YAMLError):
        values = yaml.load((drafts() / f"{name}.yaml").read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506
        return values if isinstance(values, dict) else {}
    return {}


def keep_draft(name: str, values: Mapping[str, Any]) -> None:
    """Replace a draft whole. A draft that cannot be written is not worth an interruption."""
    with suppress(OSError):
        drafts().mkdir(parents=True, exist_ok=True)
        replace_text(drafts() / f"{name}.yaml", dump(values))


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a form may lie on disk: secret knobs stay out, and whatever holds a password is masked."""
    return {n: redacted(v) for n, v in values.items() if n not in KNOBS or not KNOBS[n].secret}


def kept_drafts() -> list[str]:
    """The drafts on disk by name, the one written last first."""
    files = [(path.stat().st_mtime_ns, path.stem) for path in drafts().glob("*.yaml")]
    return [name for _, name in sorted(files, reverse=True)]


def drop_draft(name: str) -> None:
    """Remove a draft; one that is not there is no error."""
    with suppress(OSError):
        (drafts() / f"{name}.yaml").unlink(missing_ok=True)


def save_config(name: str, values: Mapping[str, Any]) -> Path:
    """Write a config under a name that a person gave."""
    saved().mkdir(parents=True, exist_ok=True)
    path = saved() / f"{paths.slug(name)}.yaml"
    replace_text(path, to_yaml(values))
    return path


def saved_configs() -> dict[str, Path]:
    """The saved configs by name, newest first."""
    files = sorted(saved().glob("*.yaml"), key=lambda p: p.stat().st_mtime, reverse=True)
    return {p.stem: p for p in files}


def read_config(source: str | Path) -> tuple[dict[str, Any], str]:
    """The values of a YAML file or recipe by the knobs' names, and a sentence where it cannot be read."""
    try:
        return renamed(read(source)), ""
    except ConfigError as error:
        return {}, str(error)


# --- the URL -------------------------------------------------------------------------------------------------------


def asked(name: str) -> str:
    """One value of the URL's query; empty where there is none."""
    return st.query_params.get(name, "")


def asked_all(name: str) -> list[str]:
    """Every value of a name in the URL's query, in order, once each."""
    return list(dict.fromkeys(v for v in st.query_params.get_all(name) if v))


def reword(
    name: str, options: Iterable[str], shown: Callable[[str], Any] = str, several: bool = False
) -> None:
    """Take one of these options (English texts), or `several`, from the address where it stands there in another language:
    a widget that is bound to the address writes the word that it shows, and links are sent to others. `shown` makes of an
    option the value that the widget has."""
    said = asked_all(name)
    if not said or name in st.session_state:
        return
    known = {catalogue(code).text(option): option for code in LANGUAGES for option in options}
    found = [known.get(word, "") for word in said]
    if all(found) and any(word != tr(option) for word, option in zip(said, found, strict=True)):
        values = [shown(option) for option in found]
        st.session_state[name] = values if several else values[0]


def page() -> int:
    """Which page of the list with the key "page" is wanted, from 1: by what was pressed, else by the URL."""
    said = str(st.session_state.get("page") or asked("page"))
    return max(1, int(said)) if said.isascii() and said.isdecimal() else 1


def first_page() -> None:
    """Go back to the first page of that list. For callbacks: what is searched for is another thing now."""
    st.session_state["page"] = 1


def tell(**values: str | list[str] | None) -> None:
    """Put values into the URL, so that a refresh or a shared link finds them; None or empty takes one away."""
    for name, told in values.items():
        if not told:
            st.query_params.pop(name, None)
        elif st.query_params.get_all(name) != ([told] if isinstance(told, str) else told):
            st.query_params[name] = told
    if _HERE in st.session_state:
        arrived(st.session_state[_HERE][0])


# --- from page to page ---------------------------------------------------------------------------------------------

_GOING, _HERE = "going-to", "here"


def go(page: str, **query: str | list[str]) -> None:
    """Open a page of the studio by its file's name, with what its URL shall say. For callbacks: the way there begins
    with the next script run, before anything is drawn."""
    st.session_state[_GOING] = (page, query)


def depart() -> None:
    """Go where `go` wants to, if it does. The first thing a script run does."""
    if _GOING in st.session_state:
        page, query = st.session_state.pop(_GOING)
        st.switch_page(f"pages/{page}.py", query_params=query)


def arrived(path: str) -> None:
    """Remember which page this session shows; `path` is its URL's, empty for the first one."""
    query = {name: st.query_params.get_all(name) for name in st.query_params}
    st.session_state[_HERE] = (path, query)


def find_back() -> None:
    """Draw the page anew if it was wiped out.

    A piece that redraws itself may ask for that in the moment its page is left. Streamlit then takes the session back
    to the page left behind and draws only the piece: the rest of the window stays empty until somebody clicks.
    """
    path, query = st.session_state.get(_HERE, ("", {}))
    if urlsplit(st.context.url or "").path.strip("/") != path:
        st.switch_page(f"pages/{path or 'home'}.py", query_params=query)
