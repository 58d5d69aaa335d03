"""OpenAI's own client against a served starter: what it sends is understood, what it gets is what it expects."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

from tests.test_generate import adapter, generated, model_of
from tuner import hosts
from tuner.config.serving import ServeConfig
from tuner.generate.request import Piece
from tuner.serve.app import application
from tuner.serve.chat import Chat, _choice, _new
from tuner.serve.grammars import calls
from tuner.serve.loaded import Loaded, load
from tuner.serve.protocol import ChatAsked
from tuner.serve.run import _listening, _socket, _url

openai = pytest.importorskip("openai", reason="the openai client is a test's requirement: pip install openai")

STARTER = Path(__file__).parents[1] / "data" / "starter"
KEY = "test-key-1"
ASKS = [{"role": "user", "content": "Where does Mia live?"}]


@dataclass
class Served:
    url: str
    loaded: Loaded

    def client(self, **more: Any) -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": KEY, "max_retries": 0, **more})

    def prompt(self, messages: list[dict[str, Any]] = ASKS) -> list[int]:
        return self.loaded.prompt(self.loaded.models.base, messages)[0]

    @property
    def stops(self) -> list[int]:
        return list(self.loaded.voice(self.loaded.models.base).stops)

    @property
    def model(self) -> Any:
        return self.loaded.adapters.base


def serving(home: Path, **knobs: Any) -> Iterator[Served]:
    config = ServeConfig(**{"model_name_or_path": str(STARTER), "use_cpu": True, "api_port": 0, **knobs})
    loaded, at = load(config), _socket(config)
    app, _ = application(loaded, [KEY], [hosts.configured_name("studio.example")])
    with loaded.service, _listening(app, at, loaded):
        yield Served(_url(at), loaded)


@pytest.fixture(scope="module")
def worn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the starter."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
    return adapter(tmp_path_factory.mktemp("worn"), base, 7, r=16, lora_alpha=256)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, worn: Path) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(tmp_path_factory.mktemp("studio")))
        yield from serving(worn, api_rows=8)


@pytest.fixture(scope="module")
def client(served: Served) -> Any:
    return served.client()


def chat(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "base", "messages": ASKS, "temperature": 0, "max_tokens": 24, **more}
    )


# --- answers


def test_plain_and_streamed_answers_are_the_same(served: Served, client: Any) -> None:
    plain = chat(client)
    ids = generated(served.model, served.prompt(), 24, eos_token_id=served.stops)
    expected = served.loaded.tokenizer.decode(ids, True)
    assert plain.choices[0].message.content == expected and plain.choices[0].finish_reason == "stop"
    assert plain.usage.prompt_tokens == len(served.prompt())
    assert plain.usage.completion_tokens == len(served.loaded.tokenizer.encode(expected))
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == expected
    assert len([c for c in chunks[:-1] if c.choices[0].delta.content]) > 2
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage == plain.usage
    assert {c.system_fingerprint for c in chunks} == {plain.system_fingerprint}
    assert not any(getattr(c, "usage", None) for c in chat(client, stream=True))
    with client.chat.completions.stream(model="base", messages=ASKS, temperature=0) as helper:
        assert helper.get_final_completion().choices[0].message.role == "assistant"


def test_several_seeded_and_stopped(client: Any) -> None:
    wild = {"temperature": 4, "top_p": 1, "extra_body": {"top_k": 0}, "max_tokens": 12}
    several = chat(client, n=3, seed=11, **wild)
    texts = [c.message.content for c in several.choices]
    assert [c.index for c in several.choices] == [0, 1, 2] and len(set(texts)) > 1
    assert [c.message.content for c in chat(client, n=3, seed=11, **wild).choices] == texts
    pieces = ["", "", ""]
    for chunk in chat(client, n=3, seed=11, stream=True, **wild):
        pieces[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert pieces == texts
    whole = chat(client).choices[0].message.content
    stopped = chat(client, stop=[whole[4:7], "never"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole[:4], "stop")
    assert chat(client, max_completion_tokens=2, max_tokens=None).choices[0].finish_reason == "length"


def test_an_answer_goes_on_from_its_beginning(client: Any) -> None:
    whole = chat(client).choices[0].message.content
    begun = [*ASKS, {"role": "assistant", "content": whole[:2]}]
    rest = chat(client, messages=begun, extra_body={"continue_final_message": True})
    assert whole[:2] + rest.choices[0].message.content == whole


def test_log_probabilities(served: Served, client: Any) -> None:
    choice = chat(client, logprobs=True, top_logprobs=4).choices[0]
    ids = served.prompt()
    with torch.no_grad():
        made = generated(served.model, ids, 24, eos_token_id=served.stops)
        said = served.model(torch.tensor([ids + made])).logits[0].log_softmax(-1)
    told = choice.logprobs.content
    assert b"".join(bytes(t.bytes) for t in told).decode() == choice.message.content
    for at, token in enumerate(told):
        row = said[len(ids) + at - 1]
        assert token.logprob == pytest.approx(float(row[made[at]]), abs=1e-5)
        values = [top.logprob for top in token.top_logprobs]
        assert values == pytest.approx(row.topk(4).values.tolist(), abs=1e-5, rel=1e-5)
    streamed = [t for c in chat(client, logprobs=True, stream=True) if c.choices[0].logprobs
                for t in c.choices[0].logprobs.content]  # fmt: skip
    assert [t.token for t in streamed] == [t.token for t in told]
    with pytest.raises(openai.UnprocessableEntityError):
        chat(client, logprobs=True, top_logprobs=21)


def test_thirty_two_streams_at_once(served: Served) -> None:
    names = ["Mia", "Tom", "Leo", "Ada", "Ben", "Eva", "Max", "Zoe"]
    asks = [
        [{"role": "user", "content": f"Where does {n} live{'?' * k}"}] for n in names for k in range(1, 5)
    ]
    alone = [generated(served.model, served.prompt(a), 16, eos_token_id=served.stops) for a in asks]

    async def one(client: Any, messages: Any) -> str:
        stream = await client.chat.completions.create(
            model="base", messages=messages, temperature=0, max_tokens=16, stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
            return list(await asyncio.gather(*(one(client, a) for a in asks)))

    # In a thread of its own: where a browser was driven before, this one has a loop already.
    with ThreadPoolExecutor(1) as pool:
        streamed = pool.submit(lambda: asyncio.run(all_of_them())).result()
    assert streamed == [served.loaded.tokenizer.decode(ids, True) for ids in alone]


def test_base_and_adapter_answer_each_by_its_name(served: Served, client: Any, worn: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    expected = {"base": chat(client).choices[0].message.content}
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32), worn
    ).eval()
    ids = generated(model, served.prompt(), 24, eos_token_id=served.stops)
    expected[str(worn)] = served.loaded.tokenizer.decode(ids, True)
    assert len(set(expected.values())) == 2
    prints = {}
    for name in ("base", str(worn), "base", "starter", str(worn)):
        answer = chat(client, model=name)
        assert answer.choices[0].message.content == expected["base" if name == "starter" else name]
        prints.setdefault(answer.system_fingerprint, name)
    assert len(prints) == 2 and all(len(p) == 12 for p in prints)


# --- text


def test_completions_take_text_ids_and_lists(served: Served, client: Any) -> None:
    texts = ["Mia lives in", "The cat"]
    ids = [served.loaded.tokenizer.encode(t) for t in texts]

    def made(prompt: Any, **more: Any) -> list[str]:
        answer = client.completions.create(model="base", prompt=prompt, temperature=0, max_tokens=5, **more)
        return [c.text for c in answer.choices]

    both = made(texts)
    assert both == made(ids) == [made(texts[0])[0], made(ids[1])[0]]
    assert made(texts, echo=True) == [t + b for t, b in zip(texts, both, strict=True)]
    assert made(texts, n=2) == [both[0], both[0], both[1], both[1]]
    stream = client.completions.create(
        model="base", prompt=texts[0], temperature=0, max_tokens=5, stream=True
    )
    assert "".join(c.choices[0].text for c in stream) == both[0]


def test_echo_measures_the_prompt(served: Served, client: Any) -> None:
    """As lm-eval asks: token ids, echo, one token more, the first without a value."""
    ids = [served.loaded.tokenizer.encode(t) for t in ("Mia lives in Saltbay.", "The cat stands<|end|>")]
    answer = client.completions.create(
        model="base", prompt=ids, temperature=0, max_tokens=1, logprobs=1, echo=True, seed=1234
    )
    for prompt, choice in zip(ids, answer.choices, strict=True):
        told = choice.logprobs
        assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(prompt) + 1
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        with torch.no_grad():
            said = served.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        for at in range(1, len(prompt)):
            assert told.token_logprobs[at] == pytest.approx(
                float(said[at - 1, prompt[at]]), abs=1e-5, rel=1e-5
            )
            likeliest = int(said[at - 1].argmax()) == prompt[at]
            assert (told.token_logprobs[at] == max(told.top_logprobs[at].values())) == likeliest
    measured = client.completions.create(model="base", prompt=ids[0], max_tokens=0, logprobs=0, echo=True)
    assert len(measured.choices[0].logprobs.tokens) == len(ids[0])


def test_a_streamed_completion_s_tokens_lie_where_they_lie_in_the_whole(client: Any) -> None:
    for more in ({"echo": True}, {"n": 2}):
        asked = {
            "model": "base",
            "prompt": "Mia lives",
            "temperature": 0,
            "max_tokens": 6,
            "logprobs": 1,
            **more,
        }
        whole = client.completions.create(**asked).choices
        streamed: list[list[int]] = [[] for _ in whole]
        for chunk in client.completions.create(stream=True, **asked):
            streamed[chunk.choices[0].index] += chunk.choices[0].logprobs.text_offset
        assert streamed == [choice.logprobs.text_offset for choice in whole]
        assert all(len(set(offsets)) > 6 - 1 for offsets in streamed)


# --- JSON


def test_json_by_schema(client: Any) -> None:
    pytest.importorskip("llguidance", reason="the extra json")
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    asked = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    for temperature in (0, 1.5):
        answer = chat(client, response_format=asked, max_tokens=80, temperature=temperature, seed=3).choices[
            0
        ]
        found = json.loads(answer.message.content)
        assert (
            set(found) == {"name", "age"} and isinstance(found["age"], int) and answer.finish_reason == "stop"
        )
    with pytest.raises(openai.BadRequestError) as refused:
        chat(
            client,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}},
        )
    assert refused.value.param == "response_format"


# --- tools

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CALLS = (
    'Let me look.\n<tool_call>\n{"name": "get_weather", "arguments": {"place": "Saltbay 🙂"}}\n</tool_call>'
)


def knows_by_heart(folder: Path, exchanges: list[tuple[list[dict[str, Any]], str]]) -> Path:
    """A small model that gives these answers to these chats, with the starter's vocabulary and Qwen's template."""
    from tuner.config.config import make
    from tuner.data.template_choice import template_of
    from tuner.data.tokens import load_tokenizer

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        folder.mkdir(exist_ok=True)
        shutil.copy(STARTER / name, folder)
    tokens = load_tokenizer(folder)
    template = template_of(
        make({"model_name_or_path": str(folder), "template": "qwen", "dataset": "x"}), tokens
    )
    rows = []
    for messages, answer in exchanges:
        prompt, said = tokens.encode(template.prompt(messages, [TOOL])), [*tokens.encode(answer), 2]
        rows.append((torch.tensor([prompt + said]), torch.tensor([[-100] * len(prompt) + said])))
    model = model_of(
        "llama", vocab_size=2048, hidden_size=64, num_hidden_layers=2, max_position_embeddings=1024
    )
    steps = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        for ids, labels in rows:
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
        steps.step()
        steps.zero_grad()
    assert loss.item() < 0.1
    model.save_pretrained(folder)
    return folder


def test_tools_round_trip(home: Path) -> None:
    """A call is read while it streams; its result goes back and the model speaks of it."""
    asks = [{"role": "user", "content": "How is Saltbay?"}]
    called = {"name": "get_weather", "arguments": {"place": "Saltbay 🙂"}}
    told = [
        *asks,
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [{"type": "function", "function": called}],
        },
        {"role": "tool", "content": "sunny"},
    ]
    folder = knows_by_heart(home / "caller", [(asks, CALLS), (told, "It is sunny.")])
    for served in serving(home, model_name_or_path=str(folder), template="qwen"):
        client = served.client()
        more = {"messages": asks, "tools": [TOOL], "max_tokens": 100}
        choice = chat(client, **more).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me look.")
        (call,) = choice.message.tool_calls
        assert (
            call.function.name == "get_weather" and json.loads(call.function.arguments) == called["arguments"]
        )
        with client.chat.completions.stream(model="base", temperature=0, **more) as stream:
            events = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
            final = stream.get_final_completion().choices[0]
        assert (
            len(events) > 3
            and final.finish_reason == "tool_calls"
            and final.message.content == "Let me look."
        )
        assert final.message.tool_calls[0].function.arguments == call.function.arguments
        back = [
            *asks,
            choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        assert chat(client, **{**more, "messages": back}).choices[0].message.content == "It is sunny."
        refused = chat(client, **more, tool_choice="none").choices[0].message
        assert not refused.tool_calls  # and the tools were not shown


ROOM = {
    "type": "function",
    "function": {
        "name": "book",
        "parameters": {
            "type": "object",
            "properties": {"nights": {"$ref": "#/$defs/nights"}, "sea": {"type": "boolean"}},
            "required": ["nights", "sea"],
            "additionalProperties": False,
            "$defs": {"nights": {"type": "integer", "minimum": 1, "maximum": 9}},
        },
    },
}


LIGHT = {
    "type": "function",
    "function": {"name": "light", "parameters": {"enum": [{"on": True}, {"on": False}]}},
}


def test_a_call_that_must_be_made_is_made_and_fits_its_tool(client: Any) -> None:
    """By a model that never saw a tool."""
    ask = {"messages": [{"role": "user", "content": "hello"}], "tools": [LIGHT, ROOM], "max_tokens": 200}
    named, one = {"type": "function", "function": {"name": "book"}}, {"parallel_tool_calls": False}
    for choice, limit in ((named, {}), ("required", one)):  # one that is named is called once
        found = chat(client, **ask, **limit, tool_choice=choice, n=3, seed=5, temperature=2.0).choices
        assert all(c.finish_reason == "tool_calls" and not c.message.content for c in found)
        calls = [call.function for c in found for call in c.message.tool_calls]
        assert len(calls) == 3
        for call in calls:
            given = json.loads(call.arguments)
            if call.name == "book":
                assert 1 <= given["nights"] <= 9 and isinstance(given["sea"], bool) and len(given) == 2
            else:
                assert call.name == "light" and given in ({"on": True}, {"on": False}) and choice != named
    among = {"mode": "required", "tools": [{"type": "function", "function": {"name": "light"}}]}
    allowed = {"type": "allowed_tools", "allowed_tools": among}
    found = chat(client, **ask, **one, tool_choice=allowed, n=3, seed=5, temperature=2.0).choices
    assert {call.function.name for c in found for call in c.message.tool_calls} == {"light"}
    bare = {"type": "function", "function": {"name": "ping"}}
    asked = {**ask, "tools": [bare], "logit_bias": None, "parallel_tool_calls": None, "n": None}
    (call,) = chat(client, **asked, tool_choice=bare).choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {}
    (call,) = chat(client, **ask, **one, tool_choice=named).choices[0].message.tool_calls
    with client.chat.completions.stream(
        model="base", temperature=0, **ask, **one, tool_choice=named
    ) as stream:
        final = stream.get_final_completion().choices[0]
    assert [c.function.arguments for c in final.message.tool_calls] == [call.function.arguments]


def test_a_bias_is_added_to_the_tokens_it_names(served: Served, client: Any) -> None:
    ask = {
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 5,
        "logprobs": True,
        "top_logprobs": 2,
    }
    plain = chat(client, **ask).choices[0].logprobs.content
    first = next(one for one in plain[0].top_logprobs if one.token != plain[0].token)
    (there,) = served.loaded.tokenizer.encode(first.token)
    forced = chat(client, **ask, logit_bias={there: 100}).choices[0].logprobs.content
    assert {one.token for one in forced} == {first.token}
    assert forced[0].logprob == pytest.approx(first.logprob, abs=1e-5)  # told as the model has it


# --- errors


def test_errors_are_the_client_s_own_classes(served: Served, client: Any, worn: Path, tmp_path: Path) -> None:
    cases = [
        (openai.BadRequestError, {"logit_bias": {"999999": 3}}, "logit_bias"),
        (openai.BadRequestError, {"tool_choice": "required"}, "tool_choice"),
        (
            openai.BadRequestError,
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "another"}}},
            "tool_choice",
        ),
        (
            openai.BadRequestError,
            {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "tool_choice",
        ),
        (openai.BadRequestError, {"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
        (
            openai.BadRequestError,
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [ROOM]}}},
            "tool_choice",
        ),
        *(
            (
                openai.BadRequestError,
                {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": [one]}},
                "tool_choice",
            )
            for one in ("room", {"type": "function", "function": "room"})
        ),
        (openai.BadRequestError, {"extra_body": {"stop_token_ids": [9999]}}, "stop_token_ids"),
        (openai.BadRequestError, {"extra_body": {"continue_final_message": True}}, "messages"),
        (
            openai.BadRequestError,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
        ),
        (openai.BadRequestError, {"messages": [{"role": "user", "content": "long " * 2000}]}, "messages"),
        (openai.NotFoundError, {"model": "nobody@champion"}, "model"),
        (openai.NotFoundError, {"model": "gpt-4"}, "model"),
        (openai.UnprocessableEntityError, {"temperature": -1}, "temperature"),
        (openai.UnprocessableEntityError, {"messages": []}, "messages"),
    ]
    for kind, given, param in cases:
        for stream in (False, True):
            with pytest.raises(kind) as refused:
                chat(client, stream=stream, **given)
            assert refused.value.param == param and str(refused.value.body["message"])
    with pytest.raises(openai.AuthenticationError):
        chat(served.client(api_key="another"))
    broken = tmp_path / "broken"
    shutil.copytree(worn, broken)
    (broken / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(openai.InternalServerError) as failed:
        chat(client, model=str(broken))
    assert failed.value.body["type"] == "server_error"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="base", input="x")
    assert chat(client, extra_body={"nobody_knows": 1, "user": "me"}).choices


def test_an_adapter_is_asked_in_the_words_it_was_taught_in(
    served: Served, worn: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "taught"
    shutil.copytree(worn, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STARTER / name, folder)
    words = "{% for m in messages %}Q: {{ m.content }} A:{% endfor %}"
    (folder / "chat_template.jinja").write_text(words)
    choice = served.loaded.models.named(str(folder))
    assert served.loaded.prompt(choice, ASKS)[0] == served.loaded.tokenizer.encode(
        f"Q: {ASKS[0]['content']} A:"
    )
    assert served.loaded.prompt(served.loaded.models.base, ASKS)[0] == served.prompt()
    assert served.loaded.prompt(served.loaded.models.named(str(worn)), ASKS)[0] == served.prompt()


@pytest.mark.slow
def test_registered_versions_answer_by_alias_and_number(home: Path, worn: Path) -> None:
    """MLflow takes seconds to import; a version of another base is in no list."""
    from tuner.config.config import make
    from tuner.tracking import adapters as registry
    from tuner.tracking.mirror import sync
    from tuner.tracking.runs import create_run

    for base, name in ((STARTER, "polite"), (home / "elsewhere", "other")):
        run = create_run(make({"model_name_or_path": str(STARTER), "dataset": "x"}), name)
        sync(run)
        row = registry.register(run, worn, base=str(base), name=name, aliases=["champion"])
    for served in serving(home):
        client = served.client()
        assert [m.id for m in client.models.list()] == ["starter", "polite@champion", "polite/1"]
        answers = {n: chat(client, model=n) for n in ("base", "polite@champion", "polite/1", str(worn))}
        texts = {n: a.choices[0].message.content for n, a in answers.items()}
        assert texts["polite@champion"] == texts["polite/1"] == texts[str(worn)] != texts["base"]
        assert answers["polite/1"].model == "polite/1"
        assert answers["polite@champion"].system_fingerprint == row.sha256[:12]
        with pytest.raises(openai.NotFoundError, match="no version or alias 7"):
            chat(client, model="polite/7")


def test_a_reward_model_scores(home: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(STARTER, num_labels=1, dtype=torch.float32)
    model = get_peft_model(
        base, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], init_lora_weights=False)
    )
    model.save_pretrained(home / "rewards")
    texts = ["In Saltbay.", "I do not know, and I hope that helps you!"]
    for served in serving(home, adapter_name_or_path=str(home / "rewards")):
        client = served.client()
        told = client.post("/score/evaluation", body={"model": "", "messages": texts}, cast_to=dict[str, Any])
        with torch.no_grad():
            encoded = [torch.tensor([served.loaded.tokenizer.encode(t)]) for t in texts]
            expected = [float(model.eval()(ids).logits[0, 0]) for ids in encoded]
        assert told["scores"] == pytest.approx(expected, abs=1e-5) and told["object"] == "score.evaluation"
        with pytest.raises(openai.BadRequestError, match="scores texts"):
            chat(client)


def test_foreign_hosts_are_refused(served: Served) -> None:
    for host, fits in (("evil.example", False), ("studio.example", True)):
        client = served.client(default_headers={"Host": host})
        if fits:
            assert chat(client).choices
            continue
        with pytest.raises(openai.PermissionDeniedError):
            chat(client)


def test_a_chat_may_name_its_template(served: Served, client: Any) -> None:
    from tuner.data.template_choice import template_of

    loaded = served.loaded
    alpaca = template_of(loaded.config.loading().model_copy(update={"template": "alpaca"}), loaded.tokenizer)
    made = chat(client, extra_body={"template": "alpaca"})
    assert (
        made.usage.prompt_tokens == len(loaded.tokenizer.encode(alpaca.prompt(ASKS))) != len(served.prompt())
    )
    assert chat(client).usage.prompt_tokens == len(served.prompt())
    with pytest.raises(
        openai.BadRequestError, match="template alpacca is not known; did you mean alpaca"
    ) as no:
        chat(client, extra_body={"template": "alpacca"})
    assert no.value.param == "template"


def test_the_run_s_own_seed_and_any_name(home: Path) -> None:
    for served in serving(home, api_open=True, seed=11):
        client = served.client()
        texts = [chat(client, temperature=1.5, max_tokens=8, model="gpt-4") for _ in range(2)]
        assert texts[0].choices[0].message.content == texts[1].choices[0].message.content
        assert texts[0].model == "starter", "the answer says which model gave it"
        others = {
            chat(client, temperature=1.5, max_tokens=8, seed=seed).choices[0].message.content
            for seed in range(6)
        }
        assert len(others) > 1, "a request's own seed counts"


@pytest.fixture
def narrow(home: Path) -> Iterator[Served]:
    """One row, and room for one that waits."""
    yield from serving(home, api_rows=1, api_waiting=1)


def test_too_many_are_sent_away_and_the_dropped_free_their_rows(narrow: Served) -> None:
    client, scheduler = narrow.client(), narrow.loaded.scheduler

    def counts() -> tuple[int, int]:
        return scheduler.running, len(scheduler.waiting)

    endless = {"max_tokens": 900, "extra_body": {"min_tokens": 900}}
    with closing(chat(client, stream=True, **endless)) as first:
        next(iter(first))
        with closing(chat(client, stream=True, **endless)) as second:
            next(iter(second))
            _until(lambda: counts() == (1, 1))
            with pytest.raises(openai.RateLimitError) as busy:
                chat(client)
            assert busy.value.response.headers["retry-after"] == "1"
    _until(lambda: counts() == (0, 0), 1.0)
    # One that waits for a whole answer hangs up, too.
    with pytest.raises(openai.APITimeoutError):
        chat(narrow.client(timeout=0.3), **endless)
    _until(lambda: counts() == (0, 0), 1.0)
    assert chat(client).choices[0].message.content


def test_no_more_may_wait_than_the_config_says(home: Path) -> None:
    for served in serving(home, api_rows=3, api_waiting=1):
        client = served.client()
        with pytest.raises(openai.BadRequestError, match="5 answers are asked for at once"):
            chat(client, n=5)
        assert len(chat(client, n=4, max_tokens=2).choices) == 4
        endless = {"max_tokens": 900, "extra_body": {"min_tokens": 900}}
        with closing(chat(client, stream=True, n=4, **endless)) as several:
            next(iter(several))
            scheduler = served.loaded.scheduler
            _until(lambda scheduler=scheduler: scheduler.running == 3)
            with pytest.raises(openai.RateLimitError):
                chat(client)


def _until(true: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_counted(served: Served, client: Any) -> None:
    import urllib.request

    before = _metrics(served)
    answer = chat(client)
    after = _metrics(served)
    assert (
        after["tuner_prompt_tokens_total"] - before["tuner_prompt_tokens_total"] == answer.usage.prompt_tokens
    )
    assert after["tuner_requests_running"] == after["tuner_requests_waiting"] == 0
    with urllib.request.urlopen(f"{served.url}/health") as health:
        assert json.load(health) == {"status": "ok"}


def _metrics(served: Served) -> dict[str, float]:
    import urllib.request

    asked = urllib.request.Request(f"{served.url}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(asked) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


# --- other clients


@pytest.mark.slow
def test_lm_eval_measures_the_same_through_the_api(served: Served, worn: Path, tmp_path: Path) -> None:
    """200 items of two choices: each log likelihood as lm-eval's own, with base and adapter loaded by transformers."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install -e .[lm-eval]")
    pytest.importorskip("tenacity", reason="lm-eval's API client is not installed; pip install -e .[lm-eval]")
    from lm_eval.tasks import TaskManager

    names, places = ["Mia", "Tom", "Leo", "Ada", "Ben"], ["Saltbay", "Lindow", "Rivermouth", "Stonebridge"]
    asks = ["Where does {} live? In", "{} lives in", "The home of {} is", "{} came back to", "I saw {} in"]
    rows = [
        {"question": ask.format(name), "choices": [f" {one}", f" {other}"], "gold": (i + j) % 2}
        for i, ask in enumerate(asks)
        for j, (name, one) in enumerate((n, p) for n in names for p in places)
        for other in [places[(places.index(one) + 1 + k) % 4] for k in (0, 1)]
    ]
    assert len(rows) == 200
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "homes",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "homes.yaml").write_text(json.dumps(task))

    def measured(backend: str, **arguments: Any) -> tuple[float, list[tuple[float, bool]]]:
        tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
        found = lm_eval.simple_evaluate(
            model=backend, model_args=arguments, tasks=["homes"], task_manager=tasks, log_samples=True,
            bootstrap_iters=0,
        )  # fmt: skip
        items = sorted(found["samples"]["homes"], key=lambda item: item["doc_id"])
        told = [(float(r[0]), str(r[1]) == "True") for item in items for r in item["filtered_resps"]]
        return found["results"]["homes"]["acc,none"], told

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        through = measured(
            "local-completions", base_url=f"{served.url}/v1/completions", model=str(worn), tokenizer=str(STARTER),
            num_concurrent=1, batch_size=8,
        )  # fmt: skip
    direct = measured(
        "hf", pretrained=str(STARTER), peft=str(worn), dtype="float32", device="cpu", batch_size=8
    )
    assert through[0] == direct[0] and len(through[1]) == len(direct[1]) == 400
    for ours, theirs in zip(through[1], direct[1], strict=True):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-4) and ours[1] == theirs[1]


def test_functions_may_call_different_things_by_one_name() -> None:
    """Each function's schema refers to its own parts, by either word that JSON schema has had for them."""

    def function(name: str, word: str, kind: str) -> dict[str, Any]:
        item = {"properties": {"item": {"$ref": f"#/{word}/Item"}}, word: {"Item": {"type": kind}}}
        return {"name": name, "parameters": {"type": "object", "required": ["item"], **item}}

    schema = calls([function("buy", "$defs", "string"), function("count", "definitions", "integer")], True)
    valid = Draft202012Validator(schema).is_valid
    for name, right, wrong in (("buy", "tea", 3), ("count", 3, "tea")):
        assert valid([{"name": name, "arguments": {"item": right}}])
        assert not valid([{"name": name, "arguments": {"item": wrong}}])


@pytest.mark.parametrize(("several", "names"), [(True, ["a", "b"]), (False, ["a"])])
def test_one_call_is_passed_on_where_several_are_not_wanted(several: bool, names: list[str]) -> None:
    """Whole and in pieces, also where the model was free to call."""
    asked = ChatAsked(messages=[{"role": "user", "content": "q"}], parallel_tool_calls=several)
    asking: Any = Chat(asked, None, [], ("a", "b"), None, "id", 0)  # type: ignore[arg-type]
    both = "".join(f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>' for name in "ab")
    message = _choice(asking, 0, [Piece(both, (), "stop")])["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == names
    deltas = [one["delta"] for one in _new(asking, 0, Piece(both, (), "stop"), asking.reader())]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [call["function"]["name"] for call in calls if "name" in call["function"]] == names
