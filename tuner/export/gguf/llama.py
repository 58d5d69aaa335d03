"""llama.cpp in a process of its own, to read back what was exported: `with Llama(file) as llama: llama.tokens("Hi")`.

It is native code that may end its process on a file it does not like, so it never shares ours. It answers on loopback,
with a key drawn anew. `python -m tuner.export.gguf.llama '{"model": ...}'` is that process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KEY = "TUNER_LLAMA_KEY"


def installed() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None


class Llama:
    """A GGUF file loaded by llama.cpp on the CPU; a context manager. `adapter` is a LoRA's GGUF file."""

    def __init__(self, file: Path, adapter: Path | None = None, context: int = 1024):
        self._key = secrets.token_hex(16)
        asked = {"model": str(file), "adapter": str(adapter or ""), "context": context}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tuner.export.gguf.llama", json.dumps(asked)],
            env={**os.environ, KEY: self._key},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Llama:
        """Wait until it has loaded. Raises OSError where llama.cpp refuses the file."""
        assert self._process.stdout is not None
        self._address = self._process.stdout.readline().strip()
        if not self._address:
            self.__exit__()
            raise OSError("llama.cpp does not load the file")
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tokens(self, text: str) -> list[int]:
        """The ids of a text, as a prompt begins: with what the model puts before every text."""
        asked = {"content": text, "add_special": True, "parse_special": True}
        return list(self._ask("/tokenize", asked)["tokens"])

    def rendered(self, messages: Sequence[Any], tools: Sequence[Any] | None = None) -> str:
        """A conversation as its chat template writes it, up to where the model answers."""
        asked = {"messages": list(messages), **({"tools": list(tools)} if tools else {})}
        return str(self._ask("/apply-template", asked)["prompt"])

    def answer(self, prompt: Sequence[int], longest: int) -> list[int]:
        """The likeliest tokens after a prompt of tokens."""
        asked = {"prompt": list(prompt), "n_predict": longest, "temperature": 0, "return_tokens": True}
        return list(self._ask("/completion", asked)["tokens"])

    def likeliest(self, prompt: Sequence[int], count: int) -> dict[int, float]:
        """The likeliest next tokens with their log probability; none where the likeliest of all ends the answer."""
        asked = {"prompt": list(prompt), "n_predict": 1, "temperature": 0, "n_probs": count}
        made = self._ask("/completion", asked).get("completion_probabilities", [])
        return {int(token["id"]): float(token["logprob"]) for row in made for token in row["top_logprobs"]}

    def text(self, tokens: Sequence[int]) -> str:
        return str(self._ask("/detokenize", {"tokens": list(tokens)})["content"])

    def _ask(self, path: str, asked: Any) -> Any:
        """POST one question to it. Raises OSError where it does not answer."""
        request = urllib.request.Request(  # noqa: S310  the address is the one our own process listens on
            self._address + path,
            json.dumps(asked).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310
            return json.load(answer)


def _serve(asked: Any) -> None:
    """Load a file and say where it listens; ends with the process that asked for it.

    Attention is computed in float32 as transformers does it: llama.cpp's flash attention on a CPU is off by 1e-3.
    """
    import xllamacpp as cpp

    params = cpp.CommonParams()
    params.model.path = asked["model"]
    params.n_ctx, params.n_parallel, params.n_gpu_layers = asked["context"], 1, 0
    params.n_batch = params.n_ubatch = asked["context"]
    params.flash_attn_type = cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = cpp.ggml_type.GGML_TYPE_F32
    params.cpuparams.poll = params.cpuparams_batch.poll = (
        0  # waits without turning the cores that others work on
    )
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [os.environ[KEY]]
    params.use_jinja, params.warmup, params.fit_params = True, False, False
    if asked["adapter"]:
        params.lora_adapters = [cpp.CommonAdapterLoraInfo(asked["adapter"], 1.0)]
    server = cpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
