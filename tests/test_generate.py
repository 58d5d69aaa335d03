"""Text is made as transformers makes it, token by token, whatever else is being made beside it."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from tuner.data.tokens import Tokenizer, load_tokenizer
from tuner.generate import sampling
from tuner.generate.adapters import BASE, Adapters
from tuner.generate.answers import Collected, answers
from tuner.generate.decoder import Decoder
from tuner.generate.request import Piece, Request, Sampling, Token
from tuner.generate.scheduler import Scheduler
from tuner.generate.service import Service
from tuner.generate.text import Speech

STARTER = Path(__file__).parents[1] / "data" / "starter"
SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOWED = {"sliding_window": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": WINDOWED,
    "gemma2": {"head_dim": 8, **WINDOWED},
    "gemma3_text": {"head_dim": 8, "sliding_window_pattern": 2, **WINDOWED},
    "phi": {},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4},
    "qwen3_next": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "num_hidden_layers": 4,
    },
}


def model_of(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **SHAPES[kind], **changes})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def starter() -> Any:
    return AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokens() -> Tokenizer:
    return load_tokenizer(STARTER)


def prompts_of(count: int, longest: int = 24, seed: int = 0) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(3, 400) for _ in range(chance.randint(2, longest))] for _ in range(count)]


def spelled(ids: Sequence[int], skip: bool = False) -> str:
    return "".join(f" {i}" for i in ids)


def generated(model: Any, prompt: Sequence[int], new: int, **more: Any) -> list[int]:
    """What transformers makes of one prompt alone."""
    ids = torch.tensor([list(prompt)])
    with torch.no_grad():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            **{"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **more},
        )
    return made[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", SHAPES)
def test_greedy_answers_are_transformers_own(kind: str) -> None:
    model, prompts = model_of(kind), prompts_of(5)
    lengths = [20, 3, 11, 1, 16]  # they leave one by one
    made = answers(model, spelled, prompts, [Sampling(max_tokens=n) for n in lengths])
    for prompt, length, answer in zip(prompts, lengths, made, strict=True):
        assert list(answer.ids) == generated(model, prompt, length), kind
        assert answer.text == spelled(answer.ids) and answer.finish == "length"


def test_penalties_and_early_ends_are_transformers_own() -> None:
    model, prompts = model_of("llama"), prompts_of(4)
    wish = Sampling(max_tokens=16, repetition_penalty=1.3, min_tokens=5, stop_ids=(7, 9, 11, 13, 17, 19))
    made = answers(model, spelled, prompts, wish)
    for prompt, answer in zip(prompts, made, strict=True):
        theirs = generated(
            model, prompt, 16, repetition_penalty=1.3, min_new_tokens=5, eos_token_id=list(wish.stop_ids)
        )
        assert list(answer.ids) == theirs


@pytest.mark.slow  # few streams are above, and thirty-two over the wire in test_api.py
def test_thirty_two_streams_equal_their_sequential_answers(starter: Any, tokens: Tokenizer) -> None:
    """They begin at different times, end at different lengths, some by chance with a seed, some cancelled."""
    chance = random.Random(1)
    texts = [f"Tell me about {name}." for name in ("Mia", "Tom", "the cat", "Saltbay", "a red boat")] * 7
    prompts = [tokens.encode("<|user|>" + t * chance.randint(1, 4)) for t in texts[:32]]
    wishes = [
        Sampling(
            max_tokens=chance.randint(1, 32), stop_ids=(2,), temperature=0.9 * (i % 2), top_p=0.9, seed=i
        )
        for i in range(32)
    ]
    alone = [answers(starter, tokens.decode, [p], w)[0] for p, w in zip(prompts, wishes, strict=True)]
    scheduler = Scheduler(Decoder(starter), tokens.decode, most=12)
    asked = [Collected(p, w) for p, w in zip(prompts, wishes, strict=True)]
    bothered = [Collected(p, Sampling(max_tokens=60)) for p in prompts[:4]]
    left = [*asked, *bothered]
    chance.shuffle(left)
    with torch.no_grad():
        while left or scheduler.busy:
            for _ in range(min(len(left), chance.randint(0, 3))):
                scheduler.submit(left.pop().request)
            scheduler.step()
            if scheduler.made > 200:
                for one in bothered:
                    one.request.cancel()
    assert [one.answer for one in asked] == alone
    assert any(one.request.finish == "cancelled" for one in bothered)


def test_log_probabilities_are_those_of_log_softmax(starter: Any, tokens: Tokenizer) -> None:
    prompt = tokens.encode("<|user|>Where does Mia live?<|end|>")
    wish = Sampling(max_tokens=8, logprobs=3, prompt_logprobs=True)
    one = Collected(prompt, wish)
    beside = [Collected(prompt[:n], Sampling(max_tokens=12, logprobs=1)) for n in (2, 5)]
    scheduler = Scheduler(Decoder(starter), tokens.decode)
    for request in (one, *beside):
        scheduler.submit(request.request)
    with torch.no_grad():
        while scheduler.busy:
            scheduler.step()
        ids = [*prompt, *one.request.ids]
        said = starter(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert one.request.prompt_tokens[0] == Token(prompt[0])
    told = [*one.request.prompt_tokens, *one.answer.tokens]
    for at, token in enumerate(told[1:], start=1):
        assert token.id == ids[at]
        assert token.logprob == pytest.approx(float(said[at - 1, token.id]), abs=1e-5)
        values = said[at - 1].topk(3).values.tolist()
        assert [value for _, value in token.top] == pytest.approx(values, abs=1e-5, rel=1e-5)


# --- adapters


def adapter(folder: Path, base: Any, seed: int, **changes: Any) -> Path:
    """An adapter that is far from nothing, as a folder."""
    torch.manual_seed(seed)
    settings_of = LoraConfig(
        **{"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "init_lora_weights": False, **changes}
    )
    made = get_peft_model(base, settings_of)
    made.save_pretrained(folder)
    made.unload()
    return folder


def test_the_base_and_each_adapter_answer_as_if_alone(tmp_path: Path) -> None:
    prompts = prompts_of(12)
    folders = {
        "one": adapter(tmp_path / "one", model_of("llama"), 1),
        "two.5": adapter(tmp_path / "two", model_of("llama"), 2, r=8, use_rslora=True),
        "three": adapter(tmp_path / "three", model_of("llama"), 3, modules_to_save=["lm_head"]),
    }
    expected: dict[str, list[list[int]]] = {}
    for name, folder in folders.items():
        worn = PeftModel.from_pretrained(model_of("llama"), folder).eval()
        expected[name] = [generated(worn, p, 10) for p in prompts[:4]]
    with worn.disable_adapter():
        expected[BASE] = [generated(worn, p, 10) for p in prompts]
    assert expected[BASE][:4] not in [expected[name] for name in folders]
    for _ in range(2):  # and after it was loaded anew
        adapters = Adapters(model_of("llama"))
        for name, folder in folders.items():
            adapters.know(name, folder)
        with Service(Scheduler(Decoder(adapters.base), spelled, adapters)) as service:
            for _ in range(2):  # first answers, and second ones after all adapters were on it
                asked = [
                    (ids, _submitted(service, prompts[number], name))
                    for number in range(len(prompts))
                    for name, answers_of in expected.items()
                    for ids in answers_of[number : number + 1]
                ]
                for ids, (one, done) in asked:
                    assert done.wait(60)
                    assert list(one.answer.ids) == ids, one.request.adapter


def _submitted(service: Service, prompt: Sequence[int], name: str) -> tuple[Collected, threading.Event]:
    one, done = Collected(prompt, Sampling(max_tokens=10), name), threading.Event()

    def told(piece: Piece) -> None:
        one.pieces.append(piece)
        if piece.finish:
            done.set()

    one.request.told = told
    service.submit(one.request)
    return one, done


def test_an_adapter_that_does_not_fit_harms_nobody(tmp_path: Path) -> None:
    prompt = prompts_of(1)[0]
    wide = adapter(tmp_path / "wide", model_of("llama", hidden_size=64), 1)
    good = adapter(tmp_path / "good", model_of("llama"), 1)
    adapters = Adapters(model_of("llama"))
    for name, folder in (("wide", wide), ("good", good)):
        adapters.know(name, folder)
    expected = {BASE: generated(model_of("llama"), prompt, 10)}
    expected["good"] = generated(PeftModel.from_pretrained(model_of("llama"), good).eval(), prompt, 10)
    with Service(Scheduler(Decoder(adapters.base), spelled, adapters)) as service:
        for name in (BASE, "wide", BASE, "good", "wide", "good", BASE):
            one, done = _submitted(service, prompt, name)
            assert done.wait(60)
            if name == "wide":
                assert one.request.finish == "error"
                with pytest.raises(Exception, match="was not trained on this model"):
                    _ = one.answer
            else:
                assert list(one.answer.ids) == expected[name], name


def test_one_that_fails_fails_alone() -> None:
    class Broken:
        ended = False

        def mask(self, scores: Any) -> Any:
            raise ValueError("broken")

        def take(self, token: int) -> None:
            """It gets none."""

    model, prompts = model_of("llama"), prompts_of(3)
    asked = [Collected(p, Sampling(max_tokens=8)) for p in prompts]
    asked[1].request.grammar = Broken()
    scheduler = Scheduler(Decoder(model), spelled)
    for one in asked:
        scheduler.submit(one.request)
    with torch.no_grad():
        while scheduler.busy:
            scheduler.step()
    for number in (0, 2):
        assert list(asked[number].answer.ids) == generated(model, prompts[number], 8)
    with pytest.raises(ValueError, match="broken"):
        _ = asked[1].answer


def test_after_one_that_fails_the_next_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model, too, whose rows cannot stand beside others."""
    model, prompts = model_of("qwen3_next"), prompts_of(2)
    decoder = Decoder(model)
    assert not decoder.joins
    scheduler = Scheduler(decoder, spelled)
    failing, next_one = (Collected(p, Sampling(max_tokens=6)) for p in prompts)
    with torch.no_grad():
        scheduler.submit(failing.request)
        scheduler.step()
        with monkeypatch.context() as broken:
            broken.setattr(decoder, "called", None)  # as if the memory were full
            scheduler.submit(next_one.request)
            scheduler.step()
        assert failing.request.finish == "error" and not next_one.request.finish
        while scheduler.busy:
            scheduler.step()
    assert list(next_one.answer.ids) == generated(model, prompts[1], 6)


def test_those_that_left_while_waiting_are_told_and_not_read() -> None:
    scheduler = Scheduler(Decoder(model_of("llama")), spelled, most=1)
    asked = [Collected(p, Sampling(max_tokens=4)) for p in prompts_of(4)]
    for one in asked:
        scheduler.submit(one.request)
    for one in asked[1:3]:
        one.request.cancel()
    with torch.no_grad():
        while scheduler.busy:
            scheduler.step()
    assert [one.request.finish for one in asked] == ["length", "cancelled", "cancelled", "length"]
    assert scheduler.read == sum(len(asked[i].request.prompt) for i in (0, 3))


# --- choosing


def test_chance_is_the_request_s_own_and_follows_the_shares() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])
    shares = (logits / 0.8).softmax(-1)

    def drawn(count: int = 4000, **more: Any) -> torch.Tensor:
        request = Request([0], Sampling(temperature=0.8, seed=5, **more))
        return torch.bincount(
            torch.tensor([sampling.chosen(logits, request) for _ in range(count)]), minlength=5
        )

    assert torch.allclose(drawn() / 4000, shares, atol=0.03)
    assert torch.equal(drawn(50), drawn(50))
    assert drawn(500, top_k=2).nonzero().flatten().tolist() == [0, 1]
    assert drawn(500, top_p=0.8).nonzero().flatten().tolist() == [0, 1]
    assert drawn(500, top_p=1e-9).nonzero().flatten().tolist() == [0]


def test_presence_and_frequency_are_counted_over_the_answer() -> None:
    request = Request([3], Sampling(presence_penalty=0.5, frequency_penalty=0.25), ids=[1, 1, 2])
    assert sampling.penalized(torch.zeros(4), request).tolist() == [0, -1.0, -0.75, 0]


# --- text


def said_by(decode: Any, ids: Sequence[int], stops: tuple[str, ...] = ()) -> list[Piece]:
    speech, pieces = Speech(decode, stops), []
    for number, i in enumerate(ids):
        piece = speech.add(Token(i), "length" if number == len(ids) - 1 else "")
        pieces += [piece] if piece else []
        if piece and piece.finish:
            break
    return pieces


@settings(max_examples=examples(150))
@given(st.text(min_size=1, max_size=30))
def test_characters_come_whole_and_in_order(text: str) -> None:
    tokens = load_tokenizer(STARTER)
    ids = tokens.encode(text)
    if not ids:
        return
    pieces = said_by(lambda ids: tokens.decode(ids), ids)
    whole = tokens.decode(ids)
    assert "".join(p.text for p in pieces) == whole
    if "\ufffd" not in whole:
        assert not any("\ufffd" in p.text for p in pieces)
    assert [t.id for p in pieces for t in p.tokens] == ids


def test_an_emoji_of_several_tokens_is_one_piece(tokens: Tokenizer) -> None:
    ids = tokens.encode("a 🙂 b 你好")
    assert len(tokens.encode("🙂")) > 1
    pieces = [p.text for p in said_by(lambda ids: tokens.decode(ids), ids)]
    assert any("🙂" in p for p in pieces) and not any("\ufffd" in p for p in pieces)


@settings(max_examples=examples(300))
@given(
    st.text("ab\n#", min_size=1, max_size=24),
    st.lists(st.text("ab\n#", min_size=1, max_size=4), max_size=3),
    st.integers(0, 9999),
)
def test_stop_strings_are_never_shown_in_part(text: str, stops: list[str], seed: int) -> None:
    """However the text is cut into tokens, what is shown is what stands before the first stop string."""
    chance, parts, at = random.Random(seed), [], 0
    while at < len(text):
        size = chance.randint(1, 4)
        parts.append(text[at : at + size])
        at += size
    pieces = said_by(lambda ids: "".join(parts[i] for i in ids), range(len(parts)), tuple(stops))
    shown = "".join(p.text for p in pieces)
    # The first stop string to be whole decides, the earliest of those that one token completed.
    told, finish = "", "length"
    for part in parts:
        told += part
        if places := [told.find(s) for s in stops if s in told]:
            told, finish = told[: min(places)], "stop"
            break
    assert (shown, pieces[-1].finish) == (told, finish)
