"""An export is the model it was made from, and its folder is whole or not there."""

from __future__ import annotations

import base64
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import forks
import psutil
import pytest
import tiny
import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from tuner import cli
from tuner.config.config import load
from tuner.config.export import ExportConfig
from tuner.config.inference import read_words
from tuner.config.knobs import ConfigError
from tuner.export import entry, modelfile
from tuner.jobs import exporting, submit
from tuner.jobs.live import Live

STARTER = Path(__file__).parents[1] / "data" / "starter"
SIZES: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SHAPES = {
    "llama": (LlamaConfig, False),
    "mistral": (MistralConfig, False),
    "qwen2": (Qwen2Config, True),
    "qwen3": (Qwen3Config, True),
    "gemma2": (Gemma2Config, True),
}
IDS = torch.tensor([[1, 4, 260, 270, 280, 5, 290, 300, 2]])


def model(folder: Path, shape: str, dtype: torch.dtype = torch.float32) -> Path:
    kind, tied = SHAPES[shape]
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(kind(**SIZES, tie_word_embeddings=tied)).to(dtype).save_pretrained(
        folder
    )
    tiny.tokenizer(folder)
    return folder


def adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter that says something."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}
    made = get_peft_model(loaded(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(2)
    for weight in made.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    made.save_pretrained(folder)
    return folder


def loaded(folder: Path, dtype: Any = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def logits(found: Any) -> torch.Tensor:
    """In float64, so that only what merging rounds is seen and not the order in which a machine adds."""
    return found.double()(input_ids=IDS).logits


def exported(words: list[str]) -> dict[str, Any]:
    """Export here; what export.json says."""
    config, _ = read_words(ExportConfig, words)
    run = submit.create(config)
    entry.export(config, Live(run))
    return json.loads((exporting.target(config) / "export.json").read_text())


# --- merged


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")
def test_a_merged_model_is_the_adapter_on_its_base(home: Path, shape: str) -> None:
    base = model(home / "base", shape)
    on_all = {"target_modules": ["embed_tokens", "q_proj", "down_proj"]} if shape == "qwen2" else {}
    folder = adapter(base, home / "adapter", **on_all)
    (home / "merge.yaml").write_text(
        f"model_name_or_path: {base}\nadapter_name_or_path: {folder}\ntemplate: default\ntrust_remote_code: false\n"
        "export_dir: out/merged\nexport_size: 5\nexport_device: cpu\nexport_legacy_format: false\n"
    )
    record = exported([str(home / "merge.yaml")])
    made = loaded(home / "out" / "merged", "auto")
    assert made.dtype == torch.float32 and made.config.use_cache
    wanted = logits(PeftModel.from_pretrained(loaded(base), str(folder)).eval())
    assert torch.allclose(logits(made), wanted, atol=1e-5)
    assert (logits(loaded(base)) - wanted).abs().max() > 0.05
    assert [row["same"] for row in record["answers"]] == [True] * 3
    assert max(row["difference"] for row in record["answers"]) < 1e-3
    assert {file["name"] for file in record["files"]} >= {"model.safetensors", "config.json", "Modelfile"}
    assert record["made_by"] == "tuner" and record["format"] == "merged"


def test_numbers_are_rounded_once(home: Path) -> None:
    base = model(home / "base", "llama", torch.bfloat16)
    folder = adapter(base, home / "adapter")
    exported(
        ["--model_name_or_path", str(base), "--adapter_name_or_path", str(folder), "--export_dir", "out"]
    )
    made = loaded(home / "out", "auto")
    assert made.dtype == torch.bfloat16
    merged = PeftModel.from_pretrained(loaded(base), str(folder)).merge_and_unload()
    for name, weight in merged.state_dict().items():
        assert torch.equal(weight.bfloat16(), made.state_dict()[name]), name


def test_a_large_model_has_several_files_and_an_index_of_them(home: Path) -> None:
    from tuner.export import merged, source

    config, _ = read_words(
        ExportConfig, ["--model_name_or_path", str(model(home / "base", "llama")), "--export_dir", "out"]
    )
    small = config.model_copy(update={"export_size": 0.0001})
    what = replace(source.found(config), asked=small)
    merged.save(what, loaded(home / "base"), home / "out", torch.float32)
    index = json.loads((home / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    assert torch.equal(logits(loaded(home / "out")), logits(loaded(home / "base")))


def test_a_quantized_base_is_refused(home: Path) -> None:
    base = model(home / "base", "llama")
    said = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(said | {"quantization_config": {"quant_method": "fp8"}}))
    folder = home / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    refused(
        {"adapter_name_or_path": (str(folder),), "model_name_or_path": str(base)}, "is quantized \\(fp8\\)"
    )


# --- the folder


def export_within(limit: int, source: Path, target: Path) -> None:
    """Export a model, in a process that may write files no longer than so many bytes."""
    from tuner.export import folder
    from tuner.export.gguf.write import write

    made, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with folder.filled(target) as fresh:
        made.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        write(source, tokenizer, fresh / "m.gguf", "f16", "m", lambda share: None)
        folder.record(fresh, {})


def test_an_export_that_is_killed_at_any_byte_leaves_no_folder_of_that_name(
    home: Path, tmp_path: Path
) -> None:
    """The system kills it at the first byte beyond a file's limit, in whichever file that is."""
    source = model(tmp_path / "base", "llama")
    whole = (source / "model.safetensors").stat().st_size
    target = tmp_path / "out" / "x"
    for limit in (0, 1, 700, 5_000, whole // 3, whole - 1):
        (code,) = forks.done((export_within, (limit, source, target)), log=tmp_path / "said")
        assert (code, target.exists()) == (-signal.SIGXFSZ, False), limit
    assert forks.done((export_within, (10**9, source, target)), log=tmp_path / "said") == [0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x"]


def test_one_export_at_a_time_fills_a_folder(home: Path, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from tuner.export import folder

    inside: list[int] = []

    def fill(number: int) -> int:
        with folder.filled(tmp_path / "out" / "x") as fresh:
            inside.append(number)
            time.sleep(0.05)
            (fresh / "a").write_text(str(number))
            return len([inside.remove(number)]) + len(inside)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(fill, range(4))) == [1] * 4
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]


def test_what_stood_there_stays_until_the_new_one_is_whole(home: Path, tmp_path: Path) -> None:
    from tuner.export import folder

    target = tmp_path / "out" / "x"
    with folder.filled(target) as fresh:
        (fresh / "a").write_text("first")
    with pytest.raises(ZeroDivisionError), folder.filled(target) as fresh:
        (fresh / "a").write_text("second")
        raise ZeroDivisionError
    assert (target / "a").read_text() == "first"
    with folder.filled(target) as fresh:
        (fresh / "b").write_text("third")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in target.parent.iterdir()] == ["x"]


# --- before it begins


def refused(values: dict[str, Any], said: str) -> None:
    config = ExportConfig(**{"export_dir": "out", "model_name_or_path": str(STARTER), **values})
    with pytest.raises(ConfigError, match=said):
        exporting.check(config)


def test_what_stands_against_an_export_is_said_before_anything_is_loaded(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    (home / "mine").mkdir()
    (home / "mine" / "letter.txt").write_text("x")
    (home / "file").write_text("x")
    refused({"export_dir": None}, "--export_dir is missing")
    refused({"export_dir": "mine"}, "holds files that are no export of the studio")
    refused({"export_dir": "file"}, "is a file")
    refused({"model_name_or_path": "nowhere"}, "no folder here and no hub name")
    refused({"adapter_name_or_path": ("mine",)}, "holds no adapter_config.json")
    refused({"adapter_name_or_path": ("none@champion",)}, "There is no adapter none")
    refused({"export_format": "lora_gguf"}, "exports an adapter; name it")
    refused({"export_format": "gguf", "export_outtype": "q4_k_m"}, "llama-quantize, which is not here")
    refused({"export_outtype": "q8_0"}, "is a type of --export_format gguf")
    refused({"quantization_bit": 4}, "leave --quantization_bit out")
    refused({"export_hub_model_id": "me/x"}, "needs your token; set HF_TOKEN in the environment")
    monkeypatch.setenv("HF_TOKEN", "x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused({"export_hub_model_id": "me/x"}, "the hub is switched off")
    refused({"export_quantization_bit": 4}, "GPTQ needs text")
    refused({"export_quantization_bit": 5, "export_quantization_dataset": "x"}, "GPTQ has 8, 4, 3 and 2")
    (home / "mine" / "letter.txt").rename(home / "letter.txt")
    exporting.check(ExportConfig(export_dir="mine", model_name_or_path=str(STARTER)))
    (home / "mine" / "export.json").write_text('{"made_by": "tuner"}')
    refused({"export_dir": "mine"}, "holds an earlier export.*--export_replace True")
    exporting.check(ExportConfig(export_dir="mine", model_name_or_path=str(STARTER), export_replace=True))


def test_room_is_reckoned_from_the_weights(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    size = (STARTER / "model.safetensors").stat().st_size
    merged = exporting.estimate(ExportConfig(export_dir="x", model_name_or_path=str(STARTER)))
    assert merged.kept == pytest.approx(size, rel=0.01) and merged.disk == merged.kept
    values = {"export_dir": "x", "model_name_or_path": str(STARTER), "export_format": "gguf"}
    full = exporting.estimate(ExportConfig(**values, export_outtype="f32", adapter_name_or_path=("a",)))
    assert full.kept == pytest.approx(2 * size, rel=0.01) and full.disk == pytest.approx(4 * size, rel=0.01)
    memory = psutil.virtual_memory()._replace(available=10)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    refused({}, "of memory, and 0 KiB are free")


def test_an_export_is_a_config_of_its_own_that_takes_no_gpu_from_others() -> None:
    config = ExportConfig(model_name_or_path="m", export_dir="d")
    assert config.use_cpu and load(config.plain()) == config
    assert not ExportConfig(model_name_or_path="m", export_dir="d", export_device="auto").use_cpu


# --- other forms


@pytest.fixture
def tuned(home: Path) -> list[str]:
    base = model(home / "base", "llama")
    folder = adapter(base, home / "adapter")
    return ["--model_name_or_path", str(base), "--adapter_name_or_path", str(folder), "--export_dir", "out"]


def test_gguf_is_read_back_and_compared(home: Path, tuned: list[str]) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    record = exported([*tuned, "--export_format", "gguf", "--export_outtype", "f32"])
    assert {file["name"] for file in record["files"]} == {"adapter-F32.gguf", "Modelfile"}
    assert record["tokenizer"]["differ"] == 0 and record["tokenizer"]["texts"] > 100
    assert [row["same"] for row in record["answers"]] == [True] * 3
    told = [row["difference"] for row in record["answers"] if row["difference"] is not None]
    assert all(difference < 2e-4 for difference in told)
    assert (home / "out" / "Modelfile").read_text().startswith("FROM ./adapter-F32.gguf\n")


def test_a_quantizer_is_found_and_what_it_says_when_it_fails_is_told(
    home: Path, tuned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = home / "llama.cpp" / "build" / "bin" / "llama-quantize"
    tool.parent.mkdir(parents=True)
    tool.write_text('#!/bin/sh\necho "$3: cannot make it" >&2\nexit 1\n')
    tool.chmod(0o755)
    monkeypatch.setenv("LLAMA_CPP", str(home / "llama.cpp"))
    assert exporting.quantizer() == tool
    with pytest.raises(ConfigError, match="llama-quantize made no q4_k_m: Q4_K_M: cannot make it; use q8_0"):
        exported([*tuned, "--export_format", "gguf", "--export_outtype", "q4_k_m"])
    assert not (home / "out").exists()


def test_lora_as_gguf_is_compared_on_its_base(home: Path, tuned: list[str]) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    record = exported([*tuned, "--export_format", "lora_gguf"])
    assert {file["name"] for file in record["files"]} == {"adapter-LoRA-F32.gguf", "Modelfile"}
    assert [row["same"] for row in record["answers"]] == [True] * 3
    assert "ADAPTER ./adapter-LoRA-F32.gguf\n" in (home / "out" / "Modelfile").read_text()


def test_an_adapter_s_zip_holds_what_peft_loads(home: Path, tuned: list[str]) -> None:
    (home / "adapter" / "optimizer.pt").write_text("no part of it")
    exported([*tuned, "--export_format", "adapter"])
    with zipfile.ZipFile(home / "out" / "adapter.zip") as packed:
        assert "adapter/optimizer.pt" not in packed.namelist()
        packed.extractall(home / "unpacked")
    there = PeftModel.from_pretrained(loaded(home / "base"), str(home / "unpacked" / "adapter")).eval()
    here = PeftModel.from_pretrained(loaded(home / "base"), str(home / "adapter")).eval()
    assert torch.equal(logits(there), logits(here))


def test_bitsandbytes_saves_four_bits(home: Path, tuned: list[str]) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    record = exported([*tuned, "--export_format", "bnb"])
    assert record["outtype"] == "bnb4" and len(record["answers"]) == 3
    said = json.loads((home / "out" / "config.json").read_text())["quantization_config"]
    assert said["load_in_4bit"]


def test_torchao_saves_eight_bits_that_load_and_answer_alike(home: Path, tuned: list[str]) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    record = exported([*tuned, "--export_format", "torchao"])
    assert record["outtype"] == "int8" and len(record["answers"]) == 3
    said = json.loads((home / "out" / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == "torchao"
    exported([*tuned[:-1], "whole"])
    with torch.no_grad():
        here, there = (loaded(home / name)(input_ids=IDS).logits for name in ("out", "whole"))
    assert 0 < (here - there).abs().max() < 0.1 * there.std()


def test_gptq_says_what_is_missing(home: Path) -> None:
    if exporting.libraries.CHECKPOINTS["gptq"].there:
        pytest.skip("gptqmodel is installed")
    refused(
        {"export_quantization_bit": 4, "export_quantization_dataset": "x.json"},
        "pip install 'tuner\\[gptq\\]'",
    )


# --- Ollama's template


def renderer(template: str | None = None) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    tokenizer.chat_template = template or tokenizer.chat_template

    def render(chat: Any, asks: bool, tools: Any = None) -> str:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=asks, tools=tools)

    return render


CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}\n{% endfor %}"


def test_a_modelfile_writes_turns_as_the_chat_template_does() -> None:
    render = renderer(CHATML)
    parts = modelfile.parts_of(render)
    assert parts.begin == "<|im_start|>system\nBe kind.<|im_end|>\n" and parts.tools is None
    for chat in modelfile.PROBES:
        assert parts.render(chat) == render(chat, True)
    with pytest.raises(modelfile.UnlikeError):
        modelfile.parts_of(renderer(NUMBERED))


GO = """
package main

import ("encoding/json"; "os"; "strings"; "text/template")

type Function struct { Name string; Arguments Raw }
type Call struct { Function Function }
type Message struct { Role, Content string; ToolCalls []Call }
type Raw string
func (r Raw) String() string { return string(r) }
type Tool struct { Text string; Function Raw }
func (t Tool) String() string { return t.Text }
type Chat struct { System string; Tools []Tool; Messages []Message }

func main() {
    text, _ := os.ReadFile(os.Args[1])
    raw, _ := os.ReadFile(os.Args[2])
    var chats []Chat
    if err := json.Unmarshal(raw, &chats); err != nil { panic(err) }
    made := template.Must(template.New("").Parse(string(text)))
    answers := []string{}
    for _, chat := range chats {
        var out strings.Builder
        if err := made.Execute(&out, chat); err != nil { panic(err) }
        answers = append(answers, out.String())
    }
    json.NewEncoder(os.Stdout).Encode(answers)
}
"""


def as_ollama(chat: list[dict[str, Any]], tools: list[Any] | None) -> dict[str, Any]:
    """A conversation as Ollama hands it to a template: tools and arguments print as JSON."""
    messages = [
        {
            "Role": m["role"],
            "Content": m.get("content") or "",
            "ToolCalls": [
                {"Function": {"Name": c["function"]["name"], "Arguments": json.dumps(c["function"]["arguments"], ensure_ascii=False)}}
                for c in m.get("tool_calls", [])
            ],
        }
        for m in chat
    ]  # fmt: skip
    system = next((m["content"] for m in chat if m["role"] == "system"), "")
    shown = [{"Text": json.dumps(t), "Function": json.dumps(t["function"])} for t in tools or []]
    return {"System": system, "Tools": shown, "Messages": messages}


@pytest.mark.slow
def test_go_renders_the_template_as_the_tokenizer_does(tmp_path: Path) -> None:
    import shutil

    from test_gguf import conversations

    if not (go := shutil.which("go")):
        pytest.skip("Go is not installed")
    for number, template in enumerate((None, CHATML, GEMMA)):
        render = renderer(template)
        chats = [(chat, tools if template is None else None) for chat, tools in conversations(20)]
        chats = [
            c
            for c in chats
            if template is None or all("tool_calls" not in m and m["role"] != "tool" for m in c[0])
        ]
        (tmp_path / "t").write_text(modelfile.go_template(modelfile.parts_of(render)))
        (tmp_path / "c").write_text(json.dumps([as_ollama(*c) for c in chats]))
        (tmp_path / "main.go").write_text(GO)
        done = subprocess.run(
            [go, "run", str(tmp_path / "main.go"), str(tmp_path / "t"), str(tmp_path / "c")],
            capture_output=True, text=True, env={**os.environ, "GO111MODULE": "off", "GOCACHE": str(tmp_path / "cache")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [render(chat, True, tools) for chat, tools in chats], number


# --- the hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files speaks."""

    token = "hf_secret"  # noqa: S105
    made: dict[str, Any] = {}
    files: dict[str, bytes] = {}

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            return self._answer({"error": "no"}, 401)
        if self.path == "/api/repos/create":
            Hub.made |= json.loads(body)
            return self._answer({"url": f"http://{self.headers['Host']}/me/tuned"})
        if "/preupload/" in self.path:
            rows = json.loads(body)["files"]
            return self._answer(
                {"files": [{"path": r["path"], "uploadMode": "regular", "shouldIgnore": False} for r in rows]}
            )
        for line in filter(None, body.splitlines()):
            said = json.loads(line)
            if said["key"] == "file":
                Hub.files[said["value"]["path"]] = base64.b64decode(said["value"]["content"])
        self._answer(
            {
                "success": True,
                "commitUrl": f"http://{self.headers['Host']}/me/tuned/commit/1",
                "commitOid": "1",
                "hookOutput": "",
            }
        )

    def do_GET(self) -> None:
        self._answer(
            {
                "id": "me/tuned",
                "sha": "0",
                "siblings": [],
                "private": True,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
        )

    def _answer(self, said: Any, status: int = 200) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", Hub.token)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_export_is_uploaded_with_the_environment_s_token(
    home: Path, tuned: list[str], hub: type[Hub]
) -> None:
    record = exported([*tuned, "--export_hub_model_id", "me/tuned"])
    assert (
        hub.made["name"] == "tuned"
        and hub.made["organization"] == "me"
        and hub.made["visibility"] == "private"
    )
    here = {file["name"] for file in record["files"]}
    assert set(hub.files) == here and "model.safetensors" in here
    assert hub.files["config.json"] == (home / "out" / "config.json").read_bytes()
    kept = "".join(p.read_text(errors="ignore") for p in (home / "mlruns" / "runs").rglob("*") if p.is_file())
    assert hub.token not in kept


# --- as a run


WORDS = ["--model_name_or_path", "base", "--export_dir", "out", "--export_outtype", "bf16"]


def test_a_folder_that_is_full_is_refused_and_the_verb_is_explained(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model(home / "base", "llama")
    exported(WORDS)
    assert cli.main(["export", *WORDS]) == 2
    assert "holds an earlier export" in capsys.readouterr().err
    assert cli.main(["export", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--export_format merged|gguf|" in told and "--export_size int (default 5)" in told


@pytest.mark.slow  # a terminal and its run are in test_executors.py, what an export does is above
def test_the_verb_exports_here_and_now(launching_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model(launching_home / "base", "llama")
    words = WORDS
    done = subprocess.run([sys.executable, "-m", "tuner", "export", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"It will take about \d+ KiB of disk, .* of memory and \d+ s\.", done.stderr)
    assert "finished" in done.stdout.splitlines()[-1]
