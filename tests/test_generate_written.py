"""Written-out layers over rows that stay where they are continue an answer as the model itself does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model

from tests.test_generate import generated, model_of, prompts_of, spelled
from tuner.generate import sampling
from tuner.generate.adapters import Adapters
from tuner.generate.answers import Collected
from tuner.generate.arena import Arena, Sizes, bucket, roomy
from tuner.generate.decoder import Decoder
from tuner.generate.request import Request, Sampling
from tuner.generate.sampling import Wish
from tuner.generate.scheduler import Scheduler
from tuner.generate.static import IDLE, StaticRows
from tuner.generate.written import Written, refusal
from tuner.models.linears import together
from tuner.models.llama_family import causal_lm


def finished(scheduler: Scheduler, asked: list[Collected], chance: random.Random) -> None:
    """Submit them a few at a time, and run until all have ended."""
    left = list(asked)
    with torch.no_grad():
        while left or scheduler.busy:
            for _ in range(min(len(left), chance.randint(0, 2))):
                scheduler.submit(left.pop().request)
            scheduler.step()


@pytest.mark.parametrize("ahead", [pytest.param(False, marks=pytest.mark.slow), True])
def test_rows_that_come_and_go_are_answered_as_if_alone(ahead: bool) -> None:
    """Short and long, by chance and not, with a stop id, with words counted, cancelled: beside each other."""
    model, chance = model_of("qwen3"), random.Random(3)
    prompts = prompts_of(14, seed=4)
    wishes = [
        Sampling(
            max_tokens=chance.choice((1, 2, 5, 30, 100)),
            temperature=1.2 * (i % 2),
            top_k=(0, 0, 7, 40)[i % 4],
            top_p=(1.0, 0.8)[i % 3 > 1],
            stop_ids=(7, 9, 11, 13),
            min_tokens=3 * (i % 5 == 0),
            logprobs=1 if i == 6 else None,
            presence_penalty=0.5 * (i == 9),
            seed=i,
        )
        for i in range(14)
    ]

    def by(decoder: Decoder, rows: int) -> list[Collected]:
        scheduler = Scheduler(decoder, spelled, most=rows)
        asked = [Collected(p, w) for p, w in zip(prompts, wishes, strict=True)]
        bothered = Collected(prompts[0], Sampling(max_tokens=90))
        bothered.request.told = lambda piece: bothered.request.cancel()  # at its first word
        finished(scheduler, [*asked, bothered], random.Random(5))
        assert bothered.request.finish == "cancelled" and len(bothered.request.ids) < 5
        return asked

    alone = [one.answer.ids for one in by(Decoder(model, written=False), 1)]
    made = [one.answer.ids for one in by(Decoder(model, ahead=ahead), 6)]
    assert made == alone
    assert len({len(ids) for ids in alone}) > 4


def test_a_surplus_token_is_told_to_nobody() -> None:
    model, prompts = model_of("llama"), prompts_of(3)
    scheduler = Scheduler(Decoder(model, ahead=True), spelled)
    asked = [Collected(p, Sampling(max_tokens=n)) for p, n in zip(prompts, (4, 9, 9), strict=True)]
    finished(scheduler, asked, random.Random(0))
    assert [len(one.answer.ids) for one in asked] == [4, 9, 9]
    assert scheduler.made == 22
    assert [list(one.answer.ids) for one in asked] == [
        generated(model, p, n) for p, n in zip(prompts, (4, 9, 9), strict=True)
    ]


def several(folder: Path, kinds: dict[str, dict[str, Any]]) -> Any:
    """A model with these adapters on it, far from nothing."""
    for seed, (name, changes) in enumerate(kinds.items()):
        base = model_of("llama")
        torch.manual_seed(seed + 1)
        if "modules_to_save" in changes:
            base.lm_head.weight.data.normal_(std=0.2)
        worn = get_peft_model(base, LoraConfig(**{"init_lora_weights": False, **changes}))
        worn.save_pretrained(folder / name)
    first, *rest = kinds
    model: Any = PeftModel.from_pretrained(model_of("llama"), folder / first, adapter_name=first)
    for name in rest:
        model.load_adapter(folder / name, adapter_name=name)
    return model.eval()


class Switched:
    """PEFT's adapters by name, empty for the base."""

    def __init__(self, model: Any):
        self.model, self.times = model, 0

    def use(self, name: str) -> None:
        self.times += 1
        self.model.base_model.enable_adapter_layers() if name else self.model.base_model.disable_adapter_layers()
        if name:
            self.model.set_adapter(name)


KINDS: dict[str, dict[str, Any]] = {
    "thin": {"r": 2, "target_modules": ["v_proj", "down_proj"]},
    "wide": {"r": 8, "target_modules": "all-linear"},
    "whole": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "unusual": {"r": 4, "target_modules": ["q_proj"], "use_dora": True},
}


@pytest.mark.parametrize("ahead", [pytest.param(False, marks=pytest.mark.slow), True])
def test_rows_of_several_adapters_share_a_step(tmp_path: Path, ahead: bool) -> None:
    model, prompts = several(tmp_path, KINDS), prompts_of(3)
    switch, expected = Switched(model), {}
    for name in ("", *KINDS):
        switch.use(name)
        expected[name] = [generated(model, p, 12) for p in prompts]
    assert len({str(made) for made in expected.values()}) == 5
    scheduler = Scheduler(Decoder(model, ahead=ahead), spelled, switch)
    for turn in range(2):
        asked = {
            (name, i): Collected(p, Sampling(max_tokens=12), name)
            for name in expected
            for i, p in enumerate(prompts)
        }
        finished(scheduler, list(asked.values()), random.Random(turn))
        for (name, i), one in asked.items():
            assert list(one.answer.ids) == expected[name][i], name
    assert scheduler.decoder.statics is not None
    sets = [set(steps.outfits) for steps in scheduler.decoder.statics.idle]
    assert {(), ("thin",), ("wide",)} in sets and {("whole",)} in sets


def test_adapters_are_told_apart_where_another_s_embedding_is_trained_whole(tmp_path: Path) -> None:
    whole = {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    model = several(tmp_path, {"whole": whole, "thin": KINDS["thin"], "wide": KINDS["wide"]})
    switch, prompt, decoder = Switched(model), prompts_of(1)[0], Decoder(model)
    scheduler = Scheduler(decoder, spelled, switch)
    for name in ("whole", "wide", "thin", "", "wide"):
        switch.use(name)
        expected = generated(model, prompt, 12)
        one = Collected(prompt, Sampling(max_tokens=12), name)
        finished(scheduler, [one], random.Random(0))
        assert list(one.answer.ids) == expected, name


def test_the_base_beside_an_adapter_is_the_base_to_the_last_bit(tmp_path: Path) -> None:
    model, prompt = several(tmp_path, KINDS), prompts_of(1)[0]
    switch = Switched(model)

    def logits(*names: str) -> torch.Tensor:
        decoder, held = Decoder(model), None
        for name in names:
            switch.use(name)
            rows, _ = decoder.prefill([prompt])
            held = decoder.enter(held, rows, [0], 64)
        assert isinstance(held, StaticRows)
        return decoder.step(held, [5] * len(names))

    with torch.no_grad():
        assert torch.equal(logits("wide", "", "thin", "")[1::2], logits("", "", "", "")[1::2])
        assert torch.allclose(logits("wide", "")[0], logits("wide", "wide")[0], atol=1e-5)


def test_arenas_are_used_again_and_few_are_kept(tmp_path: Path) -> None:
    kinds = {
        f"whole{n}": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]} for n in range(4)
    }
    model = several(tmp_path, {**kinds, "plain": KINDS["thin"], "other": KINDS["wide"]})
    decoder, prompt = Decoder(model), prompts_of(1)[0]
    scheduler = Scheduler(decoder, spelled)
    assert decoder.statics is not None
    for name, again in (("plain", False), ("whole0", False), ("other", True), ("plain", True), ("whole1", False),
                        ("whole2", False), ("whole1", True), ("plain", False)):  # fmt: skip
        model.set_adapter(name)
        kept = list(decoder.statics.idle)
        one = Collected(prompt, Sampling(max_tokens=6))
        finished(scheduler, [one], random.Random(0))
        assert list(one.answer.ids) == generated(model, prompt, 6), name
        assert len(decoder.statics.idle) <= IDLE
        assert (decoder.statics.idle[-1] in kept) == again, name


def unusual() -> dict[str, Any]:
    lora = {"target_modules": ["q_proj"], "init_lora_weights": False}
    merged = get_peft_model(model_of("llama"), LoraConfig(**lora))
    merged.merge_adapter()
    return {
        "another family": model_of("gemma2"),
        "DoRA": get_peft_model(model_of("llama"), LoraConfig(use_dora=True, **lora)),
        "a bias": get_peft_model(model_of("llama"), LoraConfig(lora_bias=True, **lora)),
        "merged": merged,
        "IA3": get_peft_model(
            model_of("llama"),
            IA3Config(target_modules=["k_proj"], feedforward_modules=[], init_ia3_weights=False),
        ),
        "its embedding": get_peft_model(
            model_of("llama"), LoraConfig(target_modules=["embed_tokens"], init_lora_weights=False)
        ),
        "a longer context": model_of(
            "llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
        ),
    }


def test_what_is_unusual_is_left_to_the_model() -> None:
    prompt = prompts_of(1)[0]
    for name, model in unusual().items():
        assert refusal(causal_lm(model)) is not None, name
        scheduler, one = Scheduler(Decoder(model.eval()), spelled), Collected(prompt, Sampling(max_tokens=5))
        finished(scheduler, [one], random.Random(0))
        assert list(one.answer.ids) == generated(model, prompt, 5), name


def test_lora_on_everything_and_a_head_trained_whole_are_written_out() -> None:
    every = LoraConfig(
        target_modules=["q_proj", "o_proj", "up_proj", "lm_head"], init_lora_weights=False, r=3
    )
    whole = LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"], init_lora_weights=False)
    for config in (every, whole):
        model, prompt = get_peft_model(model_of("qwen2"), config).eval(), prompts_of(1)[0]
        assert refusal(causal_lm(model)) is None
        one = Collected(prompt, Sampling(max_tokens=12))
        finished(Scheduler(Decoder(model), spelled), [one], random.Random(0))
        assert list(one.answer.ids) == generated(model, prompt, 12)


# --- rows and weights


@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_rows_keep_what_they_hold_while_others_leave(data: st.DataObject) -> None:
    arena, held = Arena(Sizes(1, 1, 1), torch.float32, torch.device("cpu")), []
    for turn in range(6):
        if held and data.draw(st.booleans()):
            gone = data.draw(st.lists(st.integers(0, len(held) - 1), unique=True))
            held = [held[i] for i in arena.leave(len(held), gone, 1)]
        else:
            arena.reserve(len(held) + 1, 100 + 40 * turn)
            arena.held[0][:, len(held)] = arena.tokens[len(held)] = arena.lengths[len(held)] = turn
            arena.active[len(held)] = 1
            held.append(turn)
        count = len(held)
        assert arena.tokens[:count].tolist() == arena.lengths[:count].tolist() == held
        assert arena.held[0][0, :count, 0, 0, 0].tolist() == held
        assert arena.active.sum() == count and not arena.lengths[count:].any()


def test_where_memory_is_short_only_what_is_needed_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(Sizes(2, 1, 1), torch.float32, torch.device("cpu"))
    arena.reserve(1, 20)
    arena.held[1].fill_(7)
    whole = arena._layer

    def little(rows: int, columns: int) -> torch.Tensor:
        if rows * columns > 600:
            raise torch.OutOfMemoryError("full")
        return whole(rows, columns)

    monkeypatch.setattr(arena, "_layer", little)
    age = arena.age
    arena.reserve(1, 130, hoped=2000)
    assert arena.columns == 256 and arena.age > age
    assert arena.held[1][:, :, :, :128].eq(7).all() and not arena.held[1][:, :, :, 128:].any()
    arena.reserve(2, 100, hoped=2000)
    assert (arena.rows, arena.columns) == (2, 256)
    with pytest.raises(torch.OutOfMemoryError):
        arena.reserve(2, 400)
    assert (arena.rows, arena.columns) == (2, 256)


def test_room_is_enough_and_not_too_much() -> None:
    for number in range(1, 5000):
        assert number <= bucket(number) <= max(number * 1.5, number + 7)
        assert number <= roomy(number) <= max(number * 1.5, 256)


def test_frozen_weights_become_one_and_trained_ones_stay() -> None:
    model = model_of("qwen2")
    attention = model.model.layers[0].self_attn
    linears = [attention.q_proj, attention.k_proj, attention.v_proj]
    x = torch.randn(2, 32)
    before, places = [linear(x) for linear in linears], [linear.weight.data_ptr() for linear in linears]
    assert len(together(linears).weights) == 3
    assert [linear.weight.data_ptr() for linear in linears] == places
    model.requires_grad_(False)
    one = together(linears)
    assert len(one.weights) == 1 and one.bias is not None
    assert torch.equal(together(linears).weights[0], one.weights[0])
    assert together(linears).weights[0].data_ptr() == one.weights[0].data_ptr()
    for linear, was in zip(linears, before, strict=True):
        assert torch.equal(linear(x), was)
    assert torch.allclose(x @ one.weights[0].t() + one.bias, torch.cat(before, 1), atol=1e-6)


def test_tokens_are_drawn_for_each_row_as_for_it_alone() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 50) * 3
    wishes = [Sampling(temperature=t, top_k=k, top_p=p, seed=9) for t, k, p in
              ((0, 0, 1), (1, 0, 1), (0.7, 5, 1), (1.5, 0, 0.6), (1, 9, 0.5), (2, 99, 1))]  # fmt: skip
    for grain in (0.0, 0.5) * 20:  # among coarse logits many are equal
        logits = (logits / grain).round() * grain if grain else logits
        together_ = sampling.likely(logits, Wish.of([Request([0], w) for w in wishes])).tolist()
        alone = [sampling.chosen(row, Request([0], w)) for row, w in zip(logits, wishes, strict=True)]
        assert together_ == alone
        logits = torch.randn(6, 50) * 3


def test_a_served_base_s_weights_lie_together() -> None:
    base = Adapters(model_of("qwen2")).base
    assert all(len(group.weights) == 1 for layer in Written(base).layers for group in layer.groups)


def test_a_model_whose_weights_became_one_is_saved_as_before(tmp_path: Path) -> None:
    """Layers that are frozen while others are trained: the checkpoint after a look holds what it held."""
    model = model_of("llama")
    model.save_pretrained(tmp_path / "before")
    model.model.layers[0].requires_grad_(False)
    finished(
        Scheduler(Decoder(model), spelled), [Collected([5, 6], Sampling(max_tokens=3))], random.Random(0)
    )
    model.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("before", "after"))
    assert before == after
