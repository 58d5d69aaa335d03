"""The one function that masks secrets: it finds them in every form, and leaves all other text alone."""

from __future__ import annotations

import base64
import json
import os
import string
import time
from urllib.parse import quote, quote_plus

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner import redact
from tuner.redact import MASK, Redacted, redacted, shaped
from tuner.redact import redact as mask

WORD = string.ascii_letters + string.digits
CORE = st.text(WORD, min_size=20, max_size=40).map(lambda t: f"{t}A1")
AROUND = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60)
KINDS = (
    "http://user:{}@host.test/path",
    "postgresql+psycopg2://user:{}@host.test:5432/db?x=1",
    "https://{}@github.com/me/it.git",
    "postgresql://user:with/slash{}@host.test/db",
    "hf_{}",
    "sk-proj-{}",
    "ghp_{}",
    "github_pat_{}",
    "glpat-{}",
    "xoxb-1234-{}",
    "Authorization: Bearer {}",
    "authorization='Basic {}'",
    "'Authorization': 'token {}'",
    "https://bucket.test/key?X-Amz-Signature={}&X-Amz-Date=1",
    "https://api.test/v1?access_token={}",
    "--hub_token {}",
    "--hf-hub-token={}",
    '{{"password": "{}"}}',
    "wandb_api_key={}",
    "AWS_SECRET_ACCESS_KEY={}",
    '\\"secret\\": \\"{}\\"',
    "eyJhbGciOi.eyJ{}.sig",
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(30))
@given(core=CORE, before=AROUND, after=AROUND)
def test_every_kind_is_masked_wherever_it_stands(kind: str, core: str, before: str, after: str) -> None:
    masked = mask(f"{before} {kind.format(core)} {after}")
    assert core not in masked
    assert MASK in masked
    assert mask(masked) == masked


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), min_size=16),
    AROUND,
)
def test_what_was_given_as_a_secret_is_masked_in_the_forms_it_is_printed_in(secret: str, around: str) -> None:
    before = set(redact._remembered)
    try:
        redact.remember([secret])
        raw = secret.encode()
        forms = [
            secret,
            quote(secret, safe=""),
            quote_plus(secret),
            json.dumps(secret)[1:-1],
            repr(secret)[1:-1],
        ]
        for form in [*forms, base64.b64encode(raw).decode().rstrip("=")]:
            assert form not in mask(f"{around} {form} {around}") or form in MASK
    finally:
        redact._remembered.clear()
        redact._remembered.update(before)


@given(st.text(string.ascii_letters + string.digits + " .,;!?()-_=+*/'\"<>[]{}\n", max_size=300))
def test_text_without_a_secret_stays_as_it_is(text: str) -> None:
    if not any(
        word in text.lower()
        for word in ("key", "pass", "pwd", "secret", "token", "sk-", "hf_", "cred", "bas")
    ):
        assert mask(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "{'loss': 0.6931, 'num_input_tokens_seen': 123456, 'epoch': 0.5}",
        "pad_token = <|pad|>, eos_token: </s>, max_new_tokens=128, add_special_tokens: true",
        "FileNotFoundError: data/starter/model.safetensors is missing; put it back or name another one.",
        "http://127.0.0.1:8501/runs?run=0123456789abcdef and models:/starter@champion",
        "Basic characteristics of a keyboard; a passage; secretary of state: none",
        "meta-llama/Llama-3.1-8B-Instruct, hf_transfer, hf_hub_download, sk-learn-datasets, task-oriented-dialogue-v2",
        "KeyError: 'input_ids'",
        "sqlite:////home/me/mlruns/mlflow.db is locked by another program",
        "hf_hub_token=None, password: null",
    ],
)
def test_ordinary_lines_stay_as_they_are(text: str) -> None:
    assert mask(text) == text
    assert not shaped(text)


def test_a_token_in_a_name_is_told_from_the_words_of_this_field() -> None:
    assert [n for n in ("hub_token", "password", "api_key", "accessToken") if redact.is_secret_name(n)]
    for name in (
        "pad_token",
        "new_tokens",
        "tokenized_path",
        "key",
        "keys",
        "remove_key",
        "pass_through",
        "max_tokens",
    ):
        assert not redact.is_secret_name(name)


def test_the_environment_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "correct horse battery")
    monkeypatch.setenv("PROXY", "http://me:staple%40home1@proxy.test")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("SSH_KEY", __file__)
    said = f"correct horse battery, staple@home1, staple%40home1, abc, {__file__}"
    assert mask(said) == f"***, ***, ***, abc, {__file__}"


def test_a_weak_password_tears_no_path_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "postgres")
    assert mask("/data/postgres2/model, postgres") == "/data/postgres2/model, ***"


def test_records_are_masked_whole() -> None:
    record = {"a": ["https://u:p@h", 1, None], "b": {"c": "plain"}, "n": 0.5, "t": True}
    assert redacted(record) == {"a": [f"https://{MASK}@h", 1, None], "b": {"c": "plain"}, "n": 0.5, "t": True}


def test_a_stream_masks_what_passes_and_is_otherwise_the_one_behind_it(tmp_path) -> None:
    with (tmp_path / "log").open("w") as file:
        stream = Redacted(file)
        print("https://u:hunter2@h", file=stream, flush=True)
        assert stream.fileno() == file.fileno() and not stream.isatty()
        stream.close()
        assert not file.closed
    assert (tmp_path / "log").read_text() == f"https://{MASK}@h\n"


@pytest.mark.parametrize(
    "part", ["a.a", "sk-", "://", "x_", "password=", "a@", "bearer ", "%3A%2F%2F", "eyJ.", "-----BEGIN "]
)
def test_no_text_takes_long(part: str) -> None:
    began = time.process_time()
    mask(part * (100_000 // len(part)))
    assert (
        time.process_time() - began < 5
    )  # seconds for 100 KB, where growth with the square would take minutes


def test_an_empty_environment_variable_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    assert mask("nothing here") == "nothing here"
    assert os.environ["HF_TOKEN"] == ""
