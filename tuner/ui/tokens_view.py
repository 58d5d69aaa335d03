"""Tokens drawn one by one: what is learnt is underlined and tinted, what is only read is not, special tokens are framed.

The texts go to the browser as data and become text nodes there; nothing of them is ever read as HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import streamlit as st

from tuner.data.show import Token
from tuner.text.lookup import tr

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
.tokens .special { border: 1px solid var(--st-border-color); padding: 1px 4px; margin: 0 2px; font-weight: 600; }
"""
_JS = """
export default function({ data, parentElement }) {
  const box = parentElement.querySelector('.tokens');
  const words = data.words;
  box.replaceChildren(...data.tokens.map(([id, text, trained, special]) => {
    const one = document.createElement('span');
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


def draw(tokens: Sequence[Token], key: str) -> None:
    """A sequence of tokens as the model gets it."""
    rows = [[t.id, t.text, t.trained, t.special] for t in tokens[:MOST]]
    words = [tr("trained on"), tr("context only"), tr("special")]
    _component()(data={"tokens": rows, "words": words}, key=f"tokens-{key}")
    if len(tokens) > MOST:
        st.caption(tr("… and {number:,} more tokens.", number=len(tokens) - MOST))
