"""Secrets in text: found by their shape, by the name beside them, or because this process knows them; masked as ***.

Every edge over which text leaves the studio's memory calls `redact`: records, logs, notices, refusals. Known are the
environment's passwords and keys, those inside its URLs, and what `remember` was told (knobs that hold a secret), in the
forms that libraries print them in: plain, url-encoded, base64, escaped.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal, TextIO
from urllib.parse import quote, quote_plus, unquote

from tuner.text.lookup import mark, tr

Said = Literal["name", "note", "tag"]
MASK = "***"
SHORTEST_KNOWN = 8
"""Characters of the shortest value that is looked for everywhere: shorter ones are parts of ordinary words."""
_remembered: set[str] = set()

_SECRET_NAME = re.compile(
    # "bos_token" and "remove_key" are none: of this field's own words only those of a hub.
    r"(?:^|_)(?:SECRET|PASSWORD|PASSWD|PASS|PWD|PASSPHRASE|APIKEY|CREDENTIALS?|(?:API|ACCESS|SECRET|PRIVATE|ACCOUNT)_?KEY"
    r"|(?:HUB|HF|MS|API|ACCESS|AUTH|REFRESH|BOT|SESSION|SECURITY|GITHUB|GH|GITLAB|TRACKING|WANDB)_?TOKEN)$|^TOKEN$",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(
    r"(?:TOKEN|SECRET|PASSWORD|PASSWD|_PASS|_PWD|PASSPHRASE|_KEY|APIKEY|CREDENTIALS?)$", re.IGNORECASE
)
_NAMES = (
    r"(?:[\w.-]{0,40}[_.-])?(?:password|passwd|pwd|passphrase|secret|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|secret[_-]?key|credentials?)"
    # Token is a word of this field (pad_token, max_new_tokens): only with what it is a token for.
    r"|(?:[\w.-]{0,40}[_.-])?(?:hub|hf|ms|api|access|auth|refresh|bot|session|security|github|wandb|tracking)[_-]?token"
)
# Each replacement keeps what says what it was. Repetitions are bounded, so that no text takes long.
_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), kept)
    for pattern, kept in (
        # user:password@ of a URL, up to the last @ before the path; then those with a slash inside the password.
        (r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)[^\s/?#]{1,400}@", rf"\1{MASK}@"),
        (r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)[^\s/?#@:]{0,100}:(?!\d{1,5}(?:[/?#]))[^\s@]{1,300}@", rf"\1{MASK}@"),
        (r"(%3[Aa]%2[Ff]%2[Ff])(?:(?!%2[Ff])[^\s&/]){1,400}%40", rf"\1{MASK}%40"),
        (r"(?i)([?&](?:[\w-]{0,30}token|sig|signature|x-amz-signature|x-amz-credential|[\w-]{0,30}key|password|secret)=)"
         r"[^&\s\"'#]{4,}", rf"\1{MASK}"),
        (r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\s\S]{0,20000}?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)", MASK),
        (r"(?<![A-Za-z0-9])hf_(?=[A-Za-z0-9]{0,80}[A-Z0-9])[A-Za-z0-9]{10,}", MASK),
        (r"(?<![A-Za-z0-9])sk-(?=[\w-]{0,80}\d)(?=[\w-]{0,80}[A-Z])[\w-]{16,}", MASK),
        (r"(?<![A-Za-z0-9])sk-(?=[a-z0-9]{0,80}\d)[a-z0-9]{24,}", MASK),
        (r"(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_|glpat-|npm_|pypi-|xox[abprs]-)[\w-]{16,}", MASK),
        (r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Za-z0-9])", MASK),
        (r"(?<![A-Za-z0-9])AIza[\w-]{35}", MASK),
        (r"(?<![A-Za-z0-9])eyJ[\w-]{4,}\.eyJ[\w-]{4,}\.[\w-]*", MASK),
        (r"(?<![A-Za-z0-9])ms-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", MASK),
        (r"((?i:bearer|basic)\s+)(?=[A-Za-z0-9._~+/=-]{0,80}[0-9A-Z])[A-Za-z0-9._~+/=-]{16,}", rf"\1{MASK}"),
    )
)  # fmt: skip
_NAMED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), kept)
    for pattern, kept in (
        (r"(authorization\\?[\"']?\s{0,3}[:=]\s{0,3}\\?[\"']?(?:(?:bearer|basic|token|digest)\s+)?)[^\s\"',\\]{3,}",
         rf"\1{MASK}"),
        (rf"(?<![A-Za-z0-9])((?:{_NAMES})\\?[\"']?\s{{0,3}}[:=]\s{{0,3}}\\?[\"'])(?:(?!\\?[\"'])[^\r\n]){{4,}}", rf"\1{MASK}"),
        (rf"(?<![A-Za-z0-9])((?:{_NAMES})\s{{0,3}}[:=]\s{{0,3}})(?!(?i:none|null|true|false)\b)[^\s\"',;\\]{{4,}}",
         rf"\1{MASK}"),
        (rf"(--(?:{_NAMES})[ =]{{1,3}})(?!--)[^\s\"'\\]{{4,}}", rf"\1{MASK}"),
    )
)  # fmt: skip


_HINT = re.compile(
    r"://|%40|token|secret|passw|pwd|passphrase|key|credential|authoriz|bearer|basic|sig|hf_|sk-|gh[pousr]_|github_pat|glpat-|npm_"
    r"|pypi-|xox|A[KS]IA|AIza|eyJ|ms-",
    re.IGNORECASE,
)
"""What every secret that is known by its shape or name has somewhere: most texts are done after one look."""


def redact(text: str) -> str:
    """A text with every secret in it masked; a text without one as it is. Masking twice changes nothing more."""
    if not text:
        return text
    if (known := _known()) is not None:
        text = known.sub(MASK, text)
    if not _HINT.search(text):
        return text
    for pattern, kept in (*_SHAPES, *_NAMED):
        text = pattern.sub(kept, text)
    return text


def shaped(text: str) -> bool:
    """Whether a text holds what is a secret by its shape alone, in any text: a knob, a name or a note may not."""
    return any(pattern.sub(kept, text) != text for pattern, kept in _SHAPES)


def is_secret_name(name: str) -> bool:
    """Whether a knob or a key of this name holds a secret: hub_token, password, wandb_api_key."""
    return _SECRET_NAME.search(name) is not None


KEPT_FOR_EVER: dict[Said, str] = {
    "name": mark("This name holds a password or a token, which a record keeps for ever; leave it out."),
    "note": mark("This note holds a password or a token, which a record keeps for ever; leave it out."),
    "tag": mark("This tag holds a password or a token, which a record keeps for ever; leave it out."),
}


def refuse_secret(what: Said, text: str) -> None:
    """Raises ValueError for a password or a token in a text that everybody reads who sees the run."""
    if shaped(text):
        raise ValueError(tr(KEPT_FOR_EVER[what]))


def redacted(value: Any) -> Any:
    """A value of JSON's types with every text in it masked, keys too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redacted(key): redacted(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(one) for one in value]
    return value


def remember(values: Iterable[str]) -> None:
    """Mask these values too from now on, in this process: what a person gave as a secret has no shape to know it by."""
    _remembered.update(str(value) for value in values if len(str(value)) >= SHORTEST_KNOWN)


class Redacted(io.TextIOBase):
    """A text stream that masks what is written into another."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def close(self) -> None:
        """The stream is its owner's to close."""


# --- what this process knows ---------------------------------------------------------------------------------------


def _known() -> re.Pattern[str] | None:
    found = frozenset(_remembered | set(_of_environment()))
    return _pattern(found) if found else None


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        yield from _of_variable(name, value)


@lru_cache(maxsize=1024)
def _of_variable(name: str, value: str) -> tuple[str, ...]:
    """Its secrets. Kept, for every text is held against all variables, and they hardly ever change."""
    found = [*_passwords(value)] if "://" in value and "@" in value else []
    if len(value) >= SHORTEST_KNOWN and _SECRET_VARIABLE.search(name):
        found.append(value)
    return tuple(found)


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://(?:[^\s/?#@:]{0,100}:)?(\S{1,400})@[^\s@]*")


def _passwords(text: str) -> Iterator[str]:
    url = _URL.fullmatch(text.strip())
    if url and len(url[1]) >= SHORTEST_KNOWN:
        yield url[1]
        yield unquote(url[1])


@lru_cache(maxsize=16)
def _pattern(values: frozenset[str]) -> re.Pattern[str] | None:
    forms = {form for value in values if not _is_path(value) for form in _forms(value)}
    longest_first = [_exactly(form) for form in sorted(forms, key=len, reverse=True)]
    return re.compile("|".join(longest_first)) if longest_first else None


def _exactly(form: str) -> str:
    # A weak password must not tear a path or a number apart, so it is none inside a longer word.
    escaped = re.escape(form)
    return escaped if len(form) >= 16 else rf"(?<![A-Za-z0-9]){escaped}(?![A-Za-z0-9])"


def _is_path(value: str) -> bool:
    """Whether a variable names a file that holds the secret, as GOOGLE_APPLICATION_CREDENTIALS does."""
    with suppress(OSError, ValueError):
        return value.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(value))  # noqa: PTH110, PTH111
    return False


def _forms(value: str) -> Iterator[str]:
    raw = value.encode("utf-8", "surrogateescape")
    yield value
    yield quote(raw, safe="")
    yield quote(raw)
    yield quote_plus(raw)
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield repr(value)[1:-1]
    yield base64.b64encode(raw).decode().rstrip("=")
    yield base64.urlsafe_b64encode(raw).decode().rstrip("=")
