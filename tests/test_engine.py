"""The engine beneath the stages: exact resume, the right reference, no leak between packed rows, TRL's own numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stages import Watched, config_of, losses, trained

from tuner.config.knobs import ConfigError
from tuner.engine import adapters, layers
from tuner.jobs.live import DivergedError
from tuner.models import loading
from tuner.runs import checkpoints
from tuner.runs.run import series


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        tiny.model(home / "model", hidden=32)
        tiny.data(home / "data")
        yield home


# --- stopping and going on ------------------------------------------------------------------------------------------

STEADY = {
    "max_steps": 8,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "lora_dropout": 0.1,
}


class StopsAt(Watched):
    """Asks itself to stop when a step is done."""

    at = 5

    def stepped(self, step: int, *rest: Any) -> None:
        super().stepped(step, *rest)
        if step == self.at:
            self.run.request("stop")


@pytest.mark.parametrize(
    ("stage", "dropout", "bco"),
    [
        ("sft", 0.1, 0.0),
        pytest.param("dpo", 0.1, 0.0, marks=pytest.mark.slow),
        ("dpo", 0.0, 0.0),
        pytest.param("dpo", 0.0, 1.0, marks=pytest.mark.slow),
        ("kto", 0.0, 0.0),
    ],
)
def test_a_stopped_run_goes_on_bit_by_bit(studio: Path, stage: str, dropout: float, bco: float) -> None:
    changes = {"lora_dropout": dropout, **({"pref_bco_weight": bco} if bco else {})}
    config = config_of(stage, save_strategy="steps", save_steps=3, **STEADY | changes)
    name = f"{stage}-{dropout}-{bco}"
    whole, _ = trained(config, f"whole-{name}")
    first, outcome = trained(config, f"parts-{name}", kind=StopsAt)
    assert outcome.stopped
    assert outcome.weights is None
    kept = checkpoints.latest(first.run)
    assert kept is not None
    assert kept.name == "checkpoint-5"
    first.run.forget_requests()
    second, outcome = trained(config, f"parts-{name}")
    assert outcome.weights is not None
    notes = " ".join(second.run.status().notes)
    assert "Went on from checkpoint-5" in notes
    if stage != "sft":
        assert ("Engine: packed" in notes) == (dropout == 0)
    assert losses(second) == losses(whole)
    ours, theirs = (
        (r.folder / "output" / "adapter_model.safetensors").read_bytes() for r in (second.run, whole.run)
    )
    assert ours == theirs


def test_a_damaged_checkpoint_is_passed_over(studio: Path) -> None:
    live, _ = trained(config_of("sft", save_strategy="steps", save_steps=2, **STEADY), "damaged")
    newest, before = checkpoints.of(live.run)[-1], checkpoints.of(live.run)[-2]
    weights = newest / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert "was changed" in (checkpoints.valid(newest) or "")
    assert checkpoints.valid(newest, deep=False) is None
    assert checkpoints.latest(live.run) == before
    (before / "optimizer.pt").unlink()
    assert "lacks its file optimizer.pt" in (checkpoints.valid(before) or "")


def test_only_the_newest_checkpoints_are_kept(studio: Path) -> None:
    config = config_of("sft", save_strategy="steps", save_steps=2, save_total_limit=2, **STEADY)
    live, _ = trained(config, "rotated")
    assert [c.name for c in checkpoints.of(live.run)] == ["checkpoint-6", "checkpoint-8"]


def test_output_dir_follows_the_other_tools_rules(studio: Path) -> None:
    said = {"output_dir": "saves/one", "save_strategy": "steps", "save_steps": 4, **STEADY}
    live, outcome = trained(config_of("sft", **said), "first")
    assert outcome.weights == studio / "saves" / "one"
    assert checkpoints.of(live.run)[-1] == live.run.checkpoints / "checkpoint-8"
    with pytest.raises(ConfigError, match="nothing left to train"):
        trained(config_of("sft", **said), "again")
    more, _ = trained(config_of("sft", **said | {"max_steps": 10}), "more")
    assert series(more.run.metrics()[0], "loss")[0] == [9, 10]
    fresh, _ = trained(config_of("sft", **said, overwrite_output_dir=True), "fresh")
    assert series(fresh.run.metrics()[0], "loss")[0][0] == 1
    (studio / "saves" / "two").mkdir()
    (studio / "saves" / "two" / "adapter_model.safetensors").touch()
    with pytest.raises(ConfigError, match="already holds a model"):
        trained(config_of("sft", **said | {"output_dir": "saves/two"}), "refused")


def test_a_loss_that_is_no_number_ends_the_run(studio: Path) -> None:
    with pytest.raises(DivergedError, match="loss became nan at step"):
        trained(config_of("sft", learning_rate=1e20, max_grad_norm=0.0), "diverged")


# --- the reference --------------------------------------------------------------------------------------------------


def test_going_on_from_an_adapter_is_compared_with_that_adapter(studio: Path) -> None:
    _, before = trained(config_of("dpo"), "adapter")
    assert before.weights is not None
    live, after = trained(config_of("dpo", adapter_name_or_path=str(before.weights)), "further")
    # Measured against the model without it, the first loss would lie far below: it has learned these pairs.
    assert losses(live)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert after.weights is not None
    assert not (after.weights / "ref").exists()


def test_a_new_adapter_sits_on_the_merged_model_and_says_so(studio: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, before = trained(config_of("sft"), "to-merge")
    config = config_of("dpo", adapter_name_or_path=str(before.weights), create_new_adapter=True)
    live, after = trained(config, "on-top")
    assert losses(live)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert after.weights is not None
    base = json.loads((after.weights / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert "merged" in base
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(after.weights)).eval()
    ids = torch.tensor([[4, 260, 270, 5]])
    with torch.no_grad():
        ours, theirs = live.model.eval()(input_ids=ids).logits, loaded(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"engine": "trl"}, {"finetuning_type": "full"}], ids=str)
def test_the_first_loss_of_dpo_is_ln_2(studio: Path, changes: dict[str, Any]) -> None:
    live, _ = trained(config_of("dpo", max_steps=1, **changes), f"ln2-{'-'.join(changes.values())}")
    assert losses(live)[0] == pytest.approx(math.log(2), abs=1e-6)


# --- losses on answers by their formulas, in float64 -----------------------------------------------------------------


def test_token_losses_follow_their_formulas() -> None:
    from tuner.engine import token_losses

    torch.manual_seed(0)
    logits, before = torch.randn(2, 3, 30, dtype=torch.float64), torch.randn(2, 3, 30, dtype=torch.float64)
    labels = torch.tensor([[4, 7, -100], [1, -100, 9]])
    for b, t in ((0, 0), (0, 1), (1, 0), (1, 2)):
        p = torch.softmax(logits[b, t], 0)
        q = torch.softmax(before[b, t], 0)
        top = torch.sort(logits[b, t], descending=True).values[:20].softmax(0)
        entropy = float(-(top * top.log()).sum())
        ce = -math.log(p[labels[b, t]])
        found = token_losses.log_probs_of(logits, labels)
        wanted = {
            "nll": ce,
            "dft": ce * float(p[labels[b, t]]),
            "eaft": ce * (entropy / 3) ** 0.7,
            "asft": ce * float(p[labels[b, t]]) + 0.2 * float((q * (q / p).log()).sum()),
        }
        ours = {
            "nll": token_losses.nll(found),
            "dft": token_losses.dft(found),
            "eaft": token_losses.eaft(found, logits, 0.7),
            "asft": token_losses.asft(found, logits, before, labels != -100, 0.2),
        }
        for name, value in wanted.items():
            assert float(ours[name][b, t]) == pytest.approx(value, rel=1e-9), name
            assert float(ours[name][0, 2]) == 0


def test_the_other_losses_on_answers_learn(studio: Path) -> None:
    for name in ("use_eaft_loss", "use_asft_loss"):
        live, _ = trained(config_of("sft", finetuning_type="full", **{name: True}), name)
        accuracy = series(live.run.metrics()[0], "mean_token_accuracy")[1]
        assert accuracy[-1] > accuracy[0] + 0.1
    # At its first step a model is what it was, so asft's anchor adds nothing to dft.
    first = [
        losses(trained(config_of("sft", max_steps=1, **{name: True}), f"first-{name}")[0])
        for name in ("use_dft_loss", "use_asft_loss")
    ]
    assert first[0] == pytest.approx(first[1], rel=1e-5)


# --- packing, kto's pairs, layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_examples_do_not_see_each_other(studio: Path, attention: str) -> None:
    from transformers import AutoModelForCausalLM

    from tuner.engine.completion import collator

    model = AutoModelForCausalLM.from_pretrained(studio / "model", attn_implementation=attention).eval()
    texts = [[4, 260, 261, 2], [4, 270, 2], [5, 280, 281, 282, 2]]
    packed = [
        {"input_ids": texts[0] + texts[1], "labels": texts[0] + texts[1], "seq_lengths": [4, 3]},
        {"input_ids": texts[2], "labels": texts[2], "seq_lengths": [5]},
    ]
    batch = collator(0, packed=True)(packed)
    labels = batch.pop("labels")
    assert labels[0].tolist() == [-100, 260, 261, 2, -100, 270, 2, -100, 280, 281, 282, 2]
    with torch.no_grad():
        together = model(**batch, use_cache=False).logits[0]
        alone = torch.cat([model(input_ids=torch.tensor([t])).logits[0] for t in texts])
    assert torch.allclose(together, alone, atol=1e-5)


def test_mismatched_pairs_are_mismatched_and_labels_alternate() -> None:
    from tuner.engine.kto_negatives import mismatched

    rows = [
        {"prompt_ids": [i // 2], "completion_ids": [100 + i], "label": i % 2 == 0} for i in range(12)
    ]  # each prompt twice, once good and once bad
    for size in (1, 2, 4):
        made = mismatched(rows, config_of("kto"), size)
        owner = {tuple(r["completion_ids"]): r["prompt_ids"] for r in rows}
        assert sorted(tuple(r["completion_ids"]) for r in made) == sorted(owner)
        assert all(owner[tuple(r["KL_completion_ids"])] != r["prompt_ids"] for r in made)
        good = [r["label"] for r in made]
        assert all(1 <= sum(good[i : i + 4]) <= 3 for i in range(0, 12, 4))
    (alone,) = mismatched(rows[:1], config_of("kto"), 1, others=rows)
    assert alone["KL_completion_ids"] == [102]  # a held-out row by itself takes one of the training rows
    (cut,) = mismatched(
        [{"prompt_ids": [1] * 9, "completion_ids": [7], "label": True}],
        config_of("kto", cutoff_len=12),
        1,
        others=[{"prompt_ids": [2], "completion_ids": list(range(50)), "label": True}],
    )
    assert cut["KL_completion_ids"] == [0, 1, 2]


def test_the_wanted_layers() -> None:
    def wanted(count: int, **changes: Any) -> set[int]:
        return layers.wanted_layers(config_of("sft", finetuning_type="freeze", **changes), count)

    assert wanted(12) == {10, 11}
    assert wanted(12, freeze_trainable_layers=-3) == {0, 1, 2}
    assert wanted(12, freeze_trainable_layers=3, use_llama_pro=True) == {3, 7, 11}
    with pytest.raises(ConfigError, match="does not divide"):
        wanted(12, freeze_trainable_layers=5, use_llama_pro=True)


def test_a_layer_that_is_not_there_is_named(studio: Path) -> None:
    source = loading.Source(studio / "model", str(studio / "model"))
    config = config_of("sft", lora_target="q_prj")
    with pytest.raises(ConfigError, match="q_prj is no layer of this model; did you mean q_proj"):
        adapters.lora(config, loading.load(config, source, bits=None, whole=False))
    found = adapters.lora(config_of("sft"), loading.load(config, source, bits=None, whole=False))
    assert found.target_modules == "all-linear"
    assert found.lora_alpha == 16


def test_longer_texts_stretch_the_positions(studio: Path) -> None:
    source = loading.Source(studio / "model", str(studio / "model"))
    for kind in ("linear", "dynamic", "yarn", "llama3"):
        config = config_of("sft", rope_scaling=kind, cutoff_len=600)
        model = loading.load(config, source, bits=None, whole=False)
        assert model.config.max_position_embeddings == 768
        assert model.config.rope_parameters["factor"] == 3.0
        assert model.config.rope_parameters["rope_type"] == kind


@pytest.mark.parametrize(
    ("stage", "method", "reentrant"),
    [
        ("sft", "lora", True),
        ("sft", "freeze", False),
        ("sft", "full", False),
        ("dpo", "lora", False),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in (
                ("sft", "lora", False),
                ("sft", "freeze", True),
                ("sft", "full", True),
                ("dpo", "lora", True),
            )
        ),
    ],
)
def test_computing_activations_again_changes_nothing(
    studio: Path, stage: str, method: str, reentrant: bool
) -> None:
    said = {"finetuning_type": method, "engine": "trl", "max_steps": 3}
    again = {"gradient_checkpointing": True, "use_reentrant_gc": reentrant}
    plain, _ = trained(config_of(stage, **said), f"kept-{stage}-{method}")
    live, _ = trained(config_of(stage, **said, **again), f"again-{stage}-{method}-{reentrant}")
    assert losses(live) == pytest.approx(losses(plain), rel=1e-5)


@pytest.mark.parametrize("changes", [{"bf16": True}, {"pure_bf16": True}], ids=["bf16", "pure_bf16"])
def test_half_precision_on_the_cpu(studio: Path, changes: dict[str, Any]) -> None:
    live, outcome = trained(config_of("dpo", max_steps=6, **changes), f"half-{'-'.join(changes)}")
    assert losses(live)[0] == pytest.approx(math.log(2), abs=2e-3)
    assert losses(live)[-1] < losses(live)[0]
    types = {p.dtype for p in live.model.parameters() if p.requires_grad}
    assert types == {torch.bfloat16 if "pure_bf16" in changes else torch.float32}


def test_the_best_checkpoint_is_kept_and_patience_ends(studio: Path) -> None:
    said = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 1,
    }
    config = config_of(
        "sft", **said, eval_dataset="chat", load_best_model_at_end=True, early_stopping_steps=2, learning_rate=0.5,
        max_steps=30,
    )  # fmt: skip
    live, outcome = trained(config, "best")
    steps, values = series(live.run.metrics()[0], "eval_loss")
    assert steps[-1] < 60, "patience did not end it"
    assert outcome.metrics["eval_loss"] == pytest.approx(min(values), abs=1e-4)
    assert str(live.run.status().doing) == "2 of 2 batches measured"  # or a long one would look stalled


def test_held_out_prompts_are_answered(studio: Path) -> None:
    config = config_of(
        "sft", finetuning_type="full", learning_rate=5e-3, max_steps=40, eval_dataset="chat", do_predict=True,
        predict_with_generate=True, do_sample=False, max_new_tokens=12,
    )  # fmt: skip
    live, outcome = trained(config, "answers")
    lines = (live.output / "generated_predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 16
    assert outcome.metrics["predict_exact"] > 60, rows  # it has learned them by heart
    assert outcome.metrics["predict_rouge-l"] > 60
    only, again = trained(
        config_of("sft", model_name_or_path=str(outcome.weights), do_train=False, dataset="", eval_dataset="chat",
                  do_eval=True, do_predict=True, do_sample=False, max_new_tokens=12),
        "only-measured",
    )  # fmt: skip
    assert again.weights is None
    assert again.metrics["predict_exact"] == outcome.metrics["predict_exact"]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_what_is_saved_asks_in_the_words_it_was_taught_in(studio: Path, stage: str) -> None:
    from transformers import AutoTokenizer

    from tuner.data.prepare import prepare
    from tuner.data.tokens import load_tokenizer

    config = config_of(stage, template="llama3", max_steps=1, default_system="Be kind.")
    _, outcome = trained(config, f"words-{stage}")
    saved = AutoTokenizer.from_pretrained(outcome.weights)
    row = prepare(config, load_tokenizer(studio / "model")).train[0]
    first = json.loads((studio / "data" / f"{config.dataset[0]}.json").read_text())[0]
    turn = [{"role": "user", "content": first["instruction"]}]
    ids = saved.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    assert ids == (row["prompt_ids"] if stage == "dpo" else row["input_ids"][: len(ids)])
    assert "start_header_id" in saved.decode(ids)
    plain, outcome = trained(config_of("sft", max_steps=1), "own-words")
    assert AutoTokenizer.from_pretrained(outcome.weights).chat_template == tiny.CHAT


def test_beams_for_measuring_go_before_those_for_writing() -> None:
    from tuner.engine.predict import choices

    assert choices(config_of("sft", num_beams=2))["num_beams"] == 2
    assert choices(config_of("sft", num_beams=2, generation_num_beams=3))["num_beams"] == 3
    assert choices(config_of("sft", generation_num_beams=3, eval_num_beams=4))["num_beams"] == 4


def test_scores_of_unspaced_scripts_count_signs() -> None:
    from tuner.engine.predict import questions, scores

    found = scores(["今天天气好"], ["今天天气很好"])
    assert 50 < found["rouge-1"] < 100
    assert found["bleu-4"] > 0
    assert scores(["a b c d e"], ["a b c d e"])["bleu-4"] == pytest.approx(100)
    for right in (["Anna", "Ben Smith"], ["是"], ["是", "yes", "no it is not so"], ["ที่นี่"], ["हिन्दी है"]):
        full = scores(right, right)
        assert [full[n] for n in ("bleu-4", "rouge-1", "rouge-l", "exact")] == pytest.approx([100] * 4), right
    # One Chinese answer among English ones is judged by its signs all the same.
    mixed = scores(["yes", "no", "今天天气好"], ["yes", "no", "今天天气很好"])
    assert mixed["rouge-1"] == pytest.approx((200 + found["rouge-1"]) / 3)
    assert found["rouge-1"] == pytest.approx(100 * 2 * 5 / 11) and found["rouge-2"] == pytest.approx(
        100 * 2 * 3 / 9
    )
    assert scores(["हिन"], ["हिन्दी"])["rouge-1"] == 0  # a part of a word is another word
    row = {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, 2, -100, 4, -100, 6], "seq_lengths": [4, 2]}
    assert [(q.prompt, q.expected) for q in questions([row])] == [([1, 2, 3], [4]), ([5], [6])]


def test_a_bad_answer_is_nothing_to_expect_of_a_held_out_question() -> None:
    from tuner.data.tokens import load_tokenizer
    from tuner.engine.samples import questions

    data = Path(__file__).parents[1] / "data"
    config = config_of("kto", probe="starter_kto", probe_samples=12, dataset_dir=str(data), template="qwen")
    rows = json.loads((data / "starter_kto.json").read_text(encoding="utf-8"))[:12]
    good = [row["messages"][-1]["content"] for row in rows if row["label"]]
    found = questions(config, load_tokenizer(data / "starter"))
    assert 0 < len(good) < 12 and [one.expected for one in found] == good


@settings(max_examples=examples(60))
@given(st.data())
def test_bleu_is_sacrebleus_own(data: st.DataObject) -> None:
    """Of English its 13a, of Chinese its zh, both with the effective order."""
    import sacrebleu

    from tuner.engine.predict import scores

    signs, kind = data.draw(st.sampled_from([("今天气很好吗。，！a1 ", "zh"), ("abc de, f. 12!? ", "13a")]))
    text = st.text(signs, min_size=1, max_size=12).map(str.strip).filter(bool)
    pairs = data.draw(st.lists(st.tuples(text, text), min_size=1, max_size=4))
    answers, expected = [a for a, _ in pairs], [e for _, e in pairs]
    theirs = sacrebleu.corpus_bleu(answers, [expected], tokenize=kind, use_effective_order=True).score
    assert scores(answers, expected)["bleu-4"] == pytest.approx(theirs, abs=1e-6)


# --- optimizers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "library"),
    [
        ({"use_muon": True, "learning_rate": 3e-3}, "torch"),
        ({"use_galore": True, "galore_rank": 4}, "galore_torch"),
        ({"use_apollo": True, "apollo_rank": 4}, "apollo_torch"),
        ({"use_badam": True, "badam_switch_interval": 2}, "badam"),
        ({"use_adam_mini": True, "learning_rate": 3e-3}, "adam_mini"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_other_optimizers_learn_and_resume(studio: Path, changes: dict[str, Any], library: str) -> None:
    pytest.importorskip(library)
    config = config_of(
        "sft",
        finetuning_type="full",
        save_strategy="steps",
        save_steps=4,
        **{"learning_rate": 1e-2, **changes},
    )
    live, _ = trained(config, f"optimizer-{library}")
    curve = losses(live)
    assert curve[-1] < 0.97 * curve[0]
    part, outcome = trained(config, f"optimizer-{library}-parts", kind=StopsAt)
    assert outcome.stopped
    part.run.forget_requests()
    again, _ = trained(config, f"optimizer-{library}-parts")
    if library == "torch":
        assert losses(again) == curve


def test_a_missing_library_is_named_with_its_command() -> None:
    from tuner.config.libraries import Library, need

    with pytest.raises(
        ConfigError, match=r"needs the library hqq_missing, .* run `pip install 'tuner\[hqq\]'"
    ):
        need(Library("hqq", "hqq_missing", "'tuner[hqq]'"), knob="quantization_method")


def test_an_answer_ends_where_its_template_ends_turns(studio: Path) -> None:
    """A base model's own end of text is another token than the one that ends a turn, which it was taught to write."""
    from transformers import AutoModelForCausalLM

    from tuner.data.template_choice import template_of
    from tuner.data.templates import stop_ids
    from tuner.data.tokens import load_tokenizer
    from tuner.generate.answers import answers
    from tuner.generate.request import Sampling

    model = AutoModelForCausalLM.from_pretrained(studio / "model").eval()
    tokenizer = load_tokenizer(studio / "model")

    def made(*stops: int) -> tuple[int, ...]:
        (one,) = answers(model, tokenizer.decode, [[4, 260, 270]], Sampling(max_tokens=8, stop_ids=stops))
        return one.ids

    said = made()
    assert len(said) == 8 and made(said[2], 399) == said[: said.index(said[2]) + 1]
    config = config_of("sft", template="chatml")
    ends = stop_ids(template_of(config, tokenizer), tokenizer)
    assert tokenizer.eos_id in ends
