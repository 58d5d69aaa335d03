"""Tokens drawn one by one: what is learnt is underlined and tinted, what is only read is not, special tokens are framed,
and a picture stands beside its tokens.

The texts go to the browser as data and become text nodes there; nothing of them is ever read as HTML. A picture goes as
bytes that were made here, never as an address.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import streamlit as st

from tuner.data.pictures.opening import PictureError
from tuner.data.pictures.thumbnails import thumbnail
from tuner.data.show import ShownPicture, Token
from tuner.text.lookup import tr
from tuner.ui.words import count

MOST = 3000
"""Tokens drawn at once."""

_CSS = """
.tokens { font: 0.8125rem/2 var(--st-code-font, monospace); color: var(--st-text-color); white-space: pre-wrap;
  word-break: break-word; max-height: 460px; overflow-y: auto;
  font-variant-ligatures: none; }
.tokens span { padding: 2px 0; border-radius: 3px; }
.tokens .trained { background: color-mix(in srgb, var(--st-primary-color) 16%, transparent);
  border-bottom: 2px solid var(--st-primary-color); }
.tokens .masked { opacity: .62; }
.tokens .picture { display: inline-flex; align-items: center; gap: 6px; vertical-align: middle; padding: 3px 6px 3px 3px;
  margin: 2px; border: 1px solid var(--st-border-color); border-radius: 6px; }
.tokens .picture img { max-height: 72px; max-width: 120px; border-radius: 4px; display: block; }
.tokens .special { border: 1px solid var(--st-border-color); padding: 1px 4px; margin: 0 2px; font-weight: 600; }
"""
_JS = """
export default function({ data, parentElement }) {
  const box = parentElement.querySelector('.tokens');
  const words = data.words;
  box.replaceChildren(...data.tokens.map(([id, text, trained, special, said, picture]) => {
    const one = document.createElement('span');
    if (said) {
      one.className = 'picture';
      if (picture && picture.startsWith('data:image/webp;base64,')) {
        const shown = document.createElement('img');
        shown.src = picture;
        shown.alt = said;
        one.append(shown);
      }
      one.append(document.createTextNode(said));
      one.title = 'id ' + id + ', ' + text;
      return one;
    }
    one.className = (trained ? 'trained' : 'masked') + (special ? ' special' : '');
    one.textContent = text;
    one.title = 'id ' + id + ', ' + words[trained ? 0 : 1] + (special ? ', ' + words[2] : '');
    return one;
  }));
}
"""


@cache
def _component() -> Any:
    return st.components.v2.component("tuner_tokens", html='<div class="tokens"></div>', css=_CSS, js=_JS)


def draw(tokens: Sequence[Token], key: str, pictures: Sequence[ShownPicture] = ()) -> None:
    """A sequence of tokens as the model gets it, each picture where its tokens are."""
    rows = list(_rows(tokens[:MOST], pictures))
    words = [tr("trained on"), tr("context only"), tr("special")]
    _component()(data={"tokens": rows, "words": words}, key=f"tokens-{key}")
    if len(tokens) > MOST:
        st.caption(tr("… and {number:,} more tokens.", number=len(tokens) - MOST))


def _rows(tokens: Sequence[Token], pictures: Sequence[ShownPicture]) -> Iterator[list[Any]]:
    """What the browser draws: a token each, or a picture's run of tokens as one."""
    drawn: set[int] = set()
    for picture, run in groupby(tokens, key=lambda token: token.picture):
        if picture is None or picture >= len(pictures):
            yield from ([t.id, t.text, t.trained, t.special, "", ""] for t in run)
            continue
        first, *more = run
        said = f"× {count(len(more) + 1)}"
        if picture not in drawn:
            said = f"{pictures[picture].width} × {pictures[picture].height}: {count(len(more) + 1, 'token')}"
        yield [
            first.id,
            first.text,
            first.trained,
            True,
            said,
            "" if picture in drawn else _shown(pictures[picture]),
        ]
        drawn.add(picture)


def _shown(picture: ShownPicture) -> str:
    """A small copy of a picture as a `data:` URL; empty where the file is gone meanwhile."""
    try:
        return "data:image/webp;base64," + base64.b64encode(thumbnail(picture.path)).decode()
    except (PictureError, OSError):
        return ""
