"""Rewards: each one's scores against a table made by hand, and what is said of one that cannot score."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from tuner.config.config import Config, make
from tuner.config.knobs import ConfigError
from tuner.config.reading import parse_words, read
from tuner.config.writing import command, to_yaml
from tuner.rewards import patterns, registry, remote
from tuner.rewards.reward import Completion, Reward, answer_of, score_all

MINIMAL = {"model_name_or_path": "m", "dataset": "d", "stage": "grpo", "do_train": True}
DOUBLING: dict[str, Any] = {"$ref": "#/$defs/30", "$defs": {"0": {}}}
DOUBLING["$defs"] |= {str(n + 1): {"allOf": [{"$ref": f"#/$defs/{n}"}] * 2} for n in range(30)}
CAT = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]+$"}},
    "required": ["name"],
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def said(text: str, label: str | None = None, **more: Any) -> Completion:
    return Completion("Question?", ({"role": "user", "content": "Question?"},), text, label, **more)


def reward(name: str, **given: Any) -> Reward:
    return registry.parse({name: given})


def one(
    name: str, text: str, label: str | None = None, given: dict[str, Any] | None = None, **more: Any
) -> Any:
    return reward(name, **(given or {})).score([said(text, label, **more)])[0]


@pytest.mark.parametrize(
    ("name", "given", "text", "score"),
    [
        ("contains", {"text": "thanks"}, "Many thanks to you", 1),
        ("contains", {"text": "Thanks"}, "Many thanks to you", 0),
        ("contains", {"text": "Thanks", "ignore_case": True}, "Many thanks to you", 1),
        ("contains", {"text": "you!", "where": "end"}, "I hope that helps you! \n", 1),
        ("contains", {"text": "you!", "where": "end"}, "you! And more", 0),
        ("contains", {"text": "Dear", "where": "start"}, "<think>Dear</think>\nDear all", 1),
        ("contains", {"text": "plan"}, "<think>a plan</think>yes", 0),
        ("contains", {"text": 42}, "it is 42", 1),
        ("regex", {"pattern": r"\d{3}"}, "call 123 now", 1),
        ("regex", {"pattern": r"\d{3}", "whole": True}, "call 123 now", 0),
        ("regex", {"pattern": "CALL", "ignore_case": True}, "call", 1),
        ("length", {"least": 2, "most": 3, "unit": "words"}, "one two three", 1),
        ("length", {"least": 2, "most": 3, "unit": "words"}, "one", 0),
        ("length", {"least": 2, "most": 3, "unit": "words", "slack": 4}, "a b c d", 0.75),
        ("length", {"least": 2, "most": 3, "unit": "words", "slack": 4}, "a b c d e f g", 0),
        ("length", {"most": 5, "unit": "characters", "slack": 10}, "1234567", 0.8),
        ("length", {"least": 10, "slack": 10, "unit": "characters"}, "", 0),
        ("json_valid", {}, '{"a": [1, null]}', 1),
        ("json_valid", {}, 'Here: {"a": 1}', 0),
        ("json_valid", {}, '```json\n{"a": 1}\n```', 1),
        ("json_valid", {"fenced": False}, '```json\n{"a": 1}\n```', 0),
        ("json_valid", {"kind": "object"}, "[1]", 0),
        ("json_valid", {"kind": "list"}, "[1]", 1),
        ("json_valid", {}, "NaN", 0),
        ("json_valid", {}, "[" * 100_000, 0),
        ("json_valid", {}, "", 0),
        ("json_schema", {"json_schema": CAT}, '{"name": "tom"}', 1),
        ("json_schema", {"json_schema": CAT}, '{"name": "Tom"}', 0),
        ("json_schema", {"json_schema": CAT}, "{}", 0),
        ("json_schema", {"json_schema": json.dumps(CAT)}, '<think>a cat</think>{"name": "tom"}', 1),
        ("json_schema", {"json_schema": {"patternProperties": {"^n": {"type": "string"}}}}, '{"n": 1}', 0),
        ("json_schema", {"json_schema": {"pattern": "(?:(a|aa)+)+c"}}, json.dumps("a" * 60), 0),
        ("think_format", {}, "<think>so</think>yes", 1),
        ("think_format", {}, "<think>so</think> \n", 0),
        ("think_format", {}, "<think>so", 0),
        ("think_format", {}, "yes <think>so</think> yes", 0),
        ("think_format", {}, "<think>a</think><think>b</think>yes", 0),
        ("think_format", {"opened": True}, "so</think>yes", 1),
        ("repetition", {"words": 2}, "a b c d", 0),
        ("repetition", {"words": 2}, "a b a b a b", -0.6),  # ab ba ab ba ab: 3 of 5 stood there before
        ("repetition", {"words": 1}, "No no NO no", -0.75),
        ("repetition", {}, "too short", 0),
    ],
)  # fmt: skip
def test_what_an_answer_scores(name: str, given: dict[str, Any], text: str, score: float) -> None:
    assert one(name, text, given=given) == pytest.approx(score)


@pytest.mark.parametrize(
    ("name", "given", "text", "label", "score"),
    [
        ("equals_label", {}, "The cat, of course!", "cat of course", 1),
        ("equals_label", {}, "A dog", "cat", 0),
        ("equals_label", {"normalise": False}, " cat\n", "cat", 1),
        ("equals_label", {"normalise": False}, "Cat", "cat", 0),
        ("equals_label", {}, "<think>dog?</think>cat", "<think>it purrs</think>cat", 1),
        ("equals_label", {}, "<think>cat and on and on", "cat", 0),
        ("equals_label", {}, "cat", None, None),
        ("number_equals", {}, "3 and 4 make 7.", "#### 7", 1),
        ("number_equals", {}, "7 is not it, 8 is", "7", 0),
        ("number_equals", {}, "It costs 1,234.50 in all", "1234.5", 1),
        ("number_equals", {}, r"so \boxed{12}, which is 3 times 4", "12", 1),
        ("number_equals", {}, "no idea", "7", 0),
        ("number_equals", {}, "7", "seven", None),
        ("number_equals", {}, "-3", "3", 0),
        ("number_equals", {}, "1e3", "1000", 1),
        ("number_equals", {"tolerance": 0.01}, "3.14", "3.1416", 1),
        ("number_equals", {"tolerance": 0.1}, "0.14", "0.05", 0),
        ("number_equals", {"tolerance": 0.1}, "0.045", "0.05", 1),
        ("number_equals", {}, "3.14", "3.1416", 0),
    ],
)
def test_what_an_answer_scores_beside_its_label(
    name: str, given: dict[str, Any], text: str, label: str | None, score: float | None
) -> None:
    assert one(name, text, label, given) == score


def test_formulas_are_read_by_math_verify() -> None:
    pytest.importorskip("math_verify", reason="the extra math is not installed")
    assert one("number_equals", r"It is $\frac{1}{2}$.", "$0.5$", {"reader": "math"}) == 1
    assert one("number_equals", r"It is $\frac{1}{3}$.", "$0.5$", {"reader": "math"}) == 0


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>', 1),
        ('Let me see. <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>', 1),
        ('Action: weather\nAction Input: {"city": "Rome"}', 1),
        ('{"name": "weather", "parameters": {"city": "Rome"}}', 1),
        ('<tool_call>{"name": "weather", "arguments": {"city": 3}}</tool_call>', 0),
        ('<tool_call>{"name": "weather", "arguments": {}}</tool_call>', 0),
        ('<tool_call>{"name": "wether", "arguments": {"city": "Rome"}}</tool_call>', 0),
        ('<tool_call>{"name": "weather", "arguments": {"city": "Ro', 0),
        ("It is sunny.", 0),
    ],
)
def test_calls_are_held_against_the_tools_of_the_row(text: str, score: float) -> None:
    assert one("tool_call_valid", text, tools=(WEATHER,)) == score
    assert one("tool_call_valid", text, tools=(WEATHER["function"],)) == score
    assert one("tool_call_valid", text) is None
    told = one("tool_call_valid", text, given={"needed": False}, tools=(WEATHER,))
    assert told == (None if text == "It is sunny." else score)


def test_a_pattern_may_stand_in_the_row() -> None:
    scores = reward("regex", column="correct_pattern").score(
        [
            said("Paris", columns={"correct_pattern": "^Pa"}),
            said("Rome", columns={"correct_pattern": "^Pa"}),
            said("x"),
        ]
    )
    assert scores == [1, 0, None]


def test_a_hostile_pattern_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.05)
    hostile = reward("regex", pattern=r"(?:(a|aa)+)+c")
    began = time.monotonic()
    assert hostile.score([said("a" * 60), said("aac")]) == [None, 1]
    assert time.monotonic() - began < 5
    with pytest.raises(ConfigError, match="took longer than 0.05 s on 16 answers; write a simpler pattern"):
        hostile.score([said("a" * 60)] * 20)


def test_lengths_count_tokens_and_scores_are_weighted() -> None:
    rewards = [
        reward("length", most=3),
        registry.parse({"contains": {"text": "b", "weight": -0.5}}),
        reward("equals_label"),
    ]
    found = score_all(rewards, [said("a b", tokens=3), said("a", "A", tokens=4)])
    assert [one.total for one in found] == [0.5, 1.0]
    assert found[0].parts == {"length": 1, "contains": 1, "equals_label": None}
    assert score_all([reward("equals_label")], [said("a")])[0].total is None


def test_thoughts_are_no_part_of_the_answer() -> None:
    assert [answer_of(t) for t in ("a", "<think>x</think> a", "x</think>a", "<think>x", " a ")] == [
        "a", "a", "a", "", "a",
    ]  # fmt: skip


# --- how a config names them ---------------------------------------------------------------------------------------


def configured(*rewards: Any, **more: Any) -> Config:
    return make({**MINIMAL, "reward_funcs": list(rewards), **more})


def test_each_has_a_name_and_a_weight_of_its_own() -> None:
    config = configured("json_valid", {"contains": {"text": "a"}}, {"contains": {"text": "b", "weight": 2}})
    assert [(one.name, one.weight) for one in registry.of(config)] == [
        ("json_valid", 1), ("contains", 1), ("contains_2", 2),
    ]  # fmt: skip
    weighed = registry.of(config.with_values(reward_weights=[0.1, 0.2, 0.3]))
    assert [one.weight for one in weighed] == [0.1, 0.2, 0.3]
    with pytest.raises(ConfigError, match="--reward_weights has 2 numbers for 3 rewards"):
        config.with_values(reward_weights="1,2")


def test_command_and_file_say_the_same(tmp_path: Path) -> None:
    import shlex

    config = configured(
        "json_valid", {"regex": {"pattern": "a, 'b' ${x}", "weight": 0.5}}, {"contains": {"text": "c"}}
    )
    words = shlex.split(command(config).replace("\\\n", " "))
    assert make(parse_words(words[2:])) == config
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config.changed()), encoding="utf-8")
    assert make(read(file)) == config
    assert configured(*make({**MINIMAL, "reward_funcs": "json_valid,think_format"}).reward_funcs).reward_funcs == (
        "json_valid", "think_format",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("contians", "contians is not known; did you mean contains?"),
        ("contains", "contains needs text"),
        ("accuracy_reward", "TRL's own is trl.rewards:accuracy_reward"),
        ({"contains": {"txt": "a"}}, "contains has no parameter txt; did you mean text?"),
        ({"contains": {"text": "a", "where": "middle"}}, "it is one of anywhere, start, end"),
        ({"contains": "a"}, "write its parameters by name"),
        ({"contains": {"text": "a", "weight": "much"}}, "has weight 'much', and it is a number"),
        ({"regex": {"pattern": "(a"}}, r"pattern is no regular expression: missing \)"),
        ({"regex": {"pattern": "a" * 3000}}, "2000 are the most"),
        ({"regex": {"pattern": "(" * 25 + "a" + ")+" * 25}}, "has too many repeats around each other"),
        ({"regex": {"pattern": "((a{1000}){1000}){1000}"}}, "has too many repeats around each other"),
        ({"json_schema": {"json_schema": {"properties": {"a": {"pattern": "(a"}}}}}, "has a pattern in its schema that is no"),
        ({"json_schema": {"json_schema": DOUBLING}}, "takes longer than 0.5 s to check"),
        ("regex", "needs a pattern, or a column"),
        ("length", "length needs least, most or both"),
        ({"length": {"least": 3, "most": 2}}, "has least 3 above most 2"),
        ({"length": {"least": -1}}, "has least -1, but it should be greater than or equal to 0"),
        ({"repetition": {"words": "x"}}, "has words 'x', but it should be a whole number"),
        ({"json_schema": {"json_schema": {"type": "cat"}}}, "has no valid JSON schema"),
        ({"json_schema": {"json_schema": {"$ref": "http://example.org/x"}}}, "nothing is fetched"),
        ({"http": {"url": "file:///etc/passwd"}}, "write http://host:port/path"),
        ({"a": {}, "b": {}}, "is no reward"),
        ("my rewards:f", "is no function; write module:function"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_launch(given: Any, sentence: str) -> None:
    problems = list(registry.problems(configured(given)))
    assert len(problems) == 1 and problems[0].knob == "reward_funcs"
    with pytest.raises(ConfigError, match=sentence):
        raise ConfigError(problems)


def test_a_page_sees_code_however_it_is_written() -> None:
    code: tuple[Any, ...] = (
        "my:f",
        ["json_valid", "my:f"],
        [{"my:f": {}}],
        {"my:f": {}},
        '["my:f"]',
        "json_valid,my:f",
        [["my:f"]],
    )
    for said in code:
        assert registry.refused_by_pages({"reward_funcs": said}), said
    for said in (
        (),
        None,
        "json_valid",
        '[{"regex": {"pattern": "a:b"}}]',
        [{"http": {"url": "http://h/x"}}],
    ):
        assert not registry.refused_by_pages({"reward_funcs": said}), said


def test_the_page_of_rewards_has_each_with_its_parameters() -> None:
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    for name, named in registry.TABLE.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert all(f"`{parameter}`" in row for parameter in named.parameters), row
    example = yaml.safe_load(page[page.index("    stage: grpo") : page.index("\n\nEach item")])
    assert not list(registry.problems(make(example)))


def test_every_reward_says_what_it_does() -> None:
    for named in registry.TABLE.values():
        assert named.about.endswith(".") and named.title
        assert all(knob.help.endswith((".", "?")) for knob in named.parameters.values())


# --- somebody's own ------------------------------------------------------------------------------------------------


def test_a_function_of_ones_own_is_called_as_trl_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_rewards.py").write_text(
        "def shout(prompts, completions, loud, label, times=1, **rest):\n"
        "    assert prompts[0] == [{'role': 'user', 'content': 'Question?'}]\n"
        "    return [times * float(c[0]['content'].isupper() == l) for c, l in zip(completions, loud)]\n"
        "def short(completions, **rest):\n    return [1.0]\n"
        "def broken(completions, **rest):\n    return [1 / 0]\n"
    )
    answers = [said("YES", columns={"loud": True}), said("yes", columns={"loud": True})]
    own = registry.of(configured({"own_rewards:shout": {"times": 3, "weight": 0.5}}))[0]
    assert (own.name, own.weight, own.score(answers)) == ("shout", 0.5, [3.0, 0.0])
    with pytest.raises(ConfigError, match="short gave 1 scores for 2 answers"):
        registry.parse("own_rewards:short").score(answers)
    with pytest.raises(ConfigError, match="own_rewards:broken failed: ZeroDivisionError"):
        registry.parse("own_rewards:broken").score(answers)
    with pytest.raises(ConfigError, match="is not found"):
        registry.parse("own_rewards:absent")
    assert registry.of_own(["json_valid", "own_rewards:shout", {"a.b:c": {}}]) == [
        "own_rewards:shout",
        "a.b:c",
    ]


# --- a server ------------------------------------------------------------------------------------------------------


class _Server(BaseHTTPRequestHandler):
    asked: list[tuple[Any, str | None]] = []
    replies: list[tuple[int, Any]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((body, self.headers.get("Authorization")))
        status, reply = self.replies.pop(0)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    _Server.asked, _Server.replies = [], []
    serving = HTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}/score"
    serving.shutdown()
    serving.server_close()


def test_a_server_is_asked_as_llama_factory_asks_it(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_API_KEY", "a-key-of-mine")
    config = configured(reward_model=server, reward_model_type="api", reward_weights=[0.5])
    asked = registry.of(config)
    assert [(one.name, one.weight) for one in asked] == [("reward_model", 0.5)]
    _Server.replies = [(503, {}), (200, {"scores": [0.25, -1]})]
    assert asked[0].score([said("a"), said("b", whole="<s>Question?b</s>")]) == [0.25, -1]
    body = {"model": "model", "messages": ["Question?\na", "<s>Question?b</s>"]}
    assert _Server.asked == [(body, "Bearer a-key-of-mine")] * 2


def test_no_proxy_hears_what_this_machine_is_asked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    _Server.replies = [(200, {"scores": [1]})]
    assert reward("http", url=server).score([said("a")]) == [1]


@pytest.mark.parametrize(
    ("replies", "sentence"),
    [
        ([(503, {})] * 3, "replied 503"),
        ([(404, {})], "replied 404"),
        ([(302, {})], "replied 302"),
        ([(200, {"scores": [1]})], "with 2 numbers"),
        ([(200, {"scores": [1, "good"]})], "gave 'good' for a score"),
        ([(200, {"scores": [1, float("nan")]})], "gave nan for a score"),
    ],
)
def test_a_server_that_gives_no_scores_ends_the_run(server: str, replies: Any, sentence: str) -> None:
    _Server.replies = list(replies)
    with pytest.raises(ConfigError, match=sentence):
        reward("http", url=server).score([said("a"), said("b")])
    assert not _Server.replies


def test_the_key_does_not_travel_in_the_open(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = configured({"http": {"url": "http://scores.example.org/x"}})
    assert not list(registry.problems(asked))
    monkeypatch.setenv("REWARD_API_KEY", "a-key-of-mine")
    assert "unencrypted" in next(registry.problems(asked)).sentence
    assert not list(registry.problems(configured({"http": {"url": "https://scores.example.org/x"}})))
