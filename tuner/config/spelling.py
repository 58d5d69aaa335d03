"""How a value is written so that it is read back as it was: in a file and behind a flag, whatever is in it."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import yaml

_FILLED_IN = re.compile(r"(\\*)\$\{")


def literal(value: Any) -> Any:
    """A value in which no text asks to be filled in: `${` is written as OmegaConf takes it to mean itself, \\${."""
    if isinstance(value, str):
        return _FILLED_IN.sub(lambda found: found[1] * 2 + "\\${", value)
    if isinstance(value, dict):
        return {key: literal(one) for key, one in value.items()}
    return [literal(one) for one in value] if isinstance(value, list | tuple) else value


NUMBER = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$")
"""What people write for a number and YAML 1.1 takes for a text: 5e-5."""


def takes_numbers(kind: Any) -> None:
    """Let a loader read such numbers, or a dumper quote a text that looks like one."""
    kind.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+0123456789."))


class Dumper(yaml.SafeDumper):
    """YAML's own, but for texts with a line end of Unicode, which it writes as they are and reads back as a space, and
    texts that look like numbers."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    odd = any(sign in text for sign in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if odd else None)


Dumper.add_representer(str, _text)
takes_numbers(Dumper)


def flag(name: str, value: Any, word: str) -> str:
    """A knob as it is typed in a shell, quoted; `word` is what the value is called there where nothing is odd about it."""
    if value is None:
        return f"{name}=null"
    if isinstance(value, list | tuple) and not all(map(_plain, value)):
        return shlex.quote(f"{name}={json.dumps(literal(value))}")
    text: str = literal(json.dumps(value) if isinstance(value, dict) else word)
    # What begins like a flag is told from one only behind an equals sign.
    return f"--{name}={shlex.quote(text)}" if text.startswith("--") else f"--{name} {shlex.quote(text)}"


def _plain(part: Any) -> bool:
    """Whether a part of a list can stand between commas."""
    text = str(part)
    return (
        not isinstance(part, dict)
        and bool(text)
        and text == text.strip()
        and "," not in text
        and text.lower() != "null"
    )


def listed(value: Any) -> Any:
    """A list whose parts may be mappings: as YAML has it, as JSON, or as names with commas between them."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        value = json.loads(value)
    if isinstance(value, dict):
        return tuple({name: said} for name, said in value.items())
    if value is None or (isinstance(value, str) and value.strip().lower() == "null"):
        return ()
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def asks_for_fsdp(said: str | None) -> bool:
    """Whether `fsdp` asks for it, in any of transformers' spellings."""
    return (said or "").strip().lower() not in ("", "false", "none", "no", "0")


def word(value: Any) -> str:
    """A value as it is typed in a shell: 5e-05, True, a,b, {"x": 1}; empty for None."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        nested = any(isinstance(v, dict) for v in value)
        return json.dumps(value) if nested else ",".join(str(v) for v in value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return json.dumps(value) if isinstance(value, dict) else str(value)
