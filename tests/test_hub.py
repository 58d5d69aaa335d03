"""Models by name: a hub on this machine's loopback stands in for the real one, reached as any mirror is."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import datasets
import pytest
from huggingface_hub import constants

from tuner.config.config import make
from tuner.config.models import ModelError
from tuner.data.entries import Entry
from tuner.data.hub import hub_records
from tuner.models.hub import resolve_model
from tuner.worker import show_token

NATIVE = {
    "config.json": b'{"model_type": "qwen2"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ x }}",
}
LEGACY = {
    "config.json": b'{"model_type": "qwen", "architectures": ["QWenLMHeadModel"], "auto_map": {"AutoConfig": "c.C"}}',
    "qwen.tiktoken": b"IQ== 0\n",
    "pytorch_model-00001-of-00001.bin": b"pickle",
    "modeling_qwen.py": b"raise SystemExit",
}
REMOTE = {
    "config.json": b'{"model_type": "baichuan", "auto_map": {"AutoConfig": "c.C"}}',
    "model.safetensors": b"w",
    "c.py": b"",
}
REPOS: dict[str, dict[str, bytes]] = {
    "org/native": NATIVE
    | {
        "model.safetensors": b"w",
        "pytorch_model.bin": b"p",
        "consolidated.safetensors": b"c",
        "original/model.safetensors": b"o",
        "evil.py": b"",
        "README.md": b"",
    },
    "org/legacy": LEGACY,
    "org/remote": REMOTE,
    "org/pickled": NATIVE | {"pytorch_model.bin": b"p"},
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as snapshot_download speaks."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        for repo, files in REPOS.items():
            if path == f"api/models/{repo}/revision/main":
                siblings = [{"rfilename": name} for name in files]
                return self.answer(json.dumps({"id": repo, "sha": "a" * 40, "siblings": siblings}).encode())
            if path.startswith(f"api/models/{repo}/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                return self.answer(json.dumps(tree).encode())
            if path.startswith(f"{repo}/resolve/"):
                data = files[path.split("/", 4)[4]]
                return self.answer(
                    data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": "a" * 40}
                )
        if "gated" in path:
            return self.answer(b"", {"X-Error-Code": "GatedRepo"}, 403)
        code = "RevisionNotFound" if "/revision/" in path and "org/native" in path else "RepoNotFound"
        return self.answer(b"", {"X-Error-Code": code}, 404)

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("USE_MODELSCOPE_HUB", "USE_OPENMIND_HUB", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    # HF_ENDPOINT is read when the library is imported; this is the place it lands in.
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the other tests never ask a hub
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield url
    server.shutdown()
    server.server_close()


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def refusal(name: str, **arguments: object) -> str:
    with pytest.raises(ModelError) as error:
        resolve_model(name, **arguments)  # type: ignore[arg-type]
    sentence = str(error.value)
    assert name in sentence and "\n" not in sentence and sentence.endswith(".")
    return sentence


def test_a_snapshot_holds_what_training_needs_and_no_code(hub: str, tmp_path: Path) -> None:
    folder = resolve_model("org/native", cache_dir=tmp_path)
    assert names(folder) == {*NATIVE, "model.safetensors"}
    assert (folder / "config.json").read_bytes() == NATIVE["config.json"]


def test_bin_shards_come_only_for_the_legacy_formats(hub: str, tmp_path: Path) -> None:
    assert names(resolve_model("org/legacy", cache_dir=tmp_path)) == LEGACY.keys() - {"modeling_qwen.py"}
    assert "no safetensors weights" in refusal("org/pickled", cache_dir=tmp_path)


def test_code_comes_only_with_the_flag(hub: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--trust_remote_code True"):
        resolve_model("org/remote", cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.py")) and not list(tmp_path.rglob("*.safetensors"))
    assert names(resolve_model("org/remote", cache_dir=tmp_path, trust_remote_code=True)) == REMOTE.keys()


def test_what_the_hub_refuses_is_said_in_one_sentence(hub: str, tmp_path: Path) -> None:
    assert "check the spelling" in refusal("org/absent", cache_dir=tmp_path)
    assert "licence" in refusal("org/gated", cache_dir=tmp_path)
    assert "no revision v9" in refusal("org/native", revision="v9", cache_dir=tmp_path)


def test_without_a_network_the_cache_serves(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve_model("org/native", cache_dir=tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert resolve_model("org/native", cache_dir=tmp_path) == first
    said = refusal("org/remote", cache_dir=tmp_path)
    assert "check the network" in said and "http://127.0.0.1:1" in said


def test_local_folders_and_paths(tmp_path: Path) -> None:
    for name in ("native", "pickled", "remote"):
        (tmp_path / name).mkdir()
        for file, data in REPOS[f"org/{name}"].items():
            (tmp_path / name / file).parent.mkdir(exist_ok=True)
            (tmp_path / name / file).write_bytes(data)
    assert resolve_model(str(tmp_path / "native")) == tmp_path / "native"
    assert ".bin files" in refusal(str(tmp_path / "pickled"))
    with pytest.raises(ModelError, match="trust_remote_code"):
        resolve_model(str(tmp_path / "remote"))
    assert resolve_model(str(tmp_path / "remote"), trust_remote_code=True) == tmp_path / "remote"
    assert "no folder" in refusal(str(tmp_path / "absent"))
    assert "no folder" in refusal("./models/absent/deep")


def test_modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is not a dependency: without it one sentence, with it its snapshot_download is called."""
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(ModelError, match="pip install modelscope"):
        resolve_model("org/native")
    calls = []

    def snapshot_download(name: str, **arguments: object) -> str:
        calls.append((name, arguments["revision"], arguments["allow_patterns"], arguments.get("token")))
        (tmp_path / "config.json").write_bytes(NATIVE["config.json"])
        (tmp_path / "model.safetensors").write_bytes(b"w")
        return str(tmp_path)

    library = types.ModuleType("modelscope")
    library.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", library)
    assert resolve_model("org/native", revision="main") == tmp_path
    assert calls[0] == ("org/native", None, ["config.json"], None) and "*.safetensors" in calls[1][2]
    resolve_model("org/native", token="hers")
    assert [token for *_, token in calls[2:]] == ["hers", "hers"]


def test_data_sets_of_modelscope_are_asked_for_with_the_token_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    class MsDataset:
        @staticmethod
        def load(**arguments: object) -> datasets.Dataset:
            asked.append(arguments["token"])
            made = datasets.Dataset.from_list([{"prompt": "a", "response": "b"}])
            made.to_hf_dataset = lambda: made  # type: ignore[attr-defined]
            return made

    library = types.ModuleType("modelscope")
    library.MsDataset = MsDataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", library)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "")
    show_token(make({"model_name_or_path": "m", "ms_hub_token": "hers"}))
    entry = Entry("set", tmp_path, origin="modelscope", location="org/set")
    assert [row["prompt"] for _, row in hub_records(entry)] == ["a"] and asked == ["hers"]


def test_openmind_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_OPENMIND_HUB", "1")
    with pytest.raises(ModelError, match="USE_MODELSCOPE_HUB"):
        resolve_model("org/native")


ASKING = """
from tuner import worker
from tuner.config.config import make
from tuner.config.knobs import ConfigError
from tuner.data.hub import catalog_text
worker.show_token(make({"model_name_or_path": "m", "hf_hub_token": "the person's own token"}))
try:
    catalog_text("somebody/sets")
except ConfigError as error:
    print(error)
"""


def test_data_sets_are_asked_for_with_the_token_that_was_given() -> None:
    asked: list[tuple[str, str | None]] = []

    class Asked(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(404)
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *said: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Asked) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        own = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "another",
        }
        done = subprocess.run(
            [sys.executable, "-c", ASKING], env={**os.environ, **own}, capture_output=True, text=True
        )
        hub.shutdown()
    assert done.returncode == 0 and "cannot be fetched" in done.stdout, done.stderr
    shown = {header for path, header in asked if "somebody/sets" in path}
    assert shown == {"Bearer the person's own token"}
