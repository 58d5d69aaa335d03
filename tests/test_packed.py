"""The packed engine is exact: held to TRL on the same ids, to itself under other packings, and to
transformers."""

import copy
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from tiny_packed import CPU, CUTOFF, FAMILIES, SIZES, VOCAB, build, labelled_rows, pair_rows, pairs
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainingArguments

from tuner.engine.losses import LossSettings, preference_loss
from tuner.engine.packed.autograd_policy import AutogradPolicy
from tuner.engine.packed.bucket_sizes import choose_levels, drawn_sizes, level_count, level_shape
from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.forms import activation_of
from tuner.engine.packed.objective import PreferenceObjective, answer_sums, finish_metrics
from tuner.engine.packed.policy import FusedPolicy, fused_refusal, head_refusal
from tuner.engine.packed.reference import weights_fingerprint
from tuner.engine.packed.rows import RowShape, bucket_shape, exact_shape, pack_row
from tuner.engine.packed.steps import StepRunner
from tuner.engine.packed.support import unsupported
from tuner.engine.packed.trainer import EngineSettings, PackedTrainer
from tuner.engine.packed.units import split_units, units_of_step


def packed_step(model, rows, settings=None, micro=2, budget=10_000, policy=None):
    """(loss, gradients by parameter name, metrics) of one optimizer step of the packed engine."""
    policy = policy or FusedPolicy(model)
    objective = PreferenceObjective(settings or LossSettings(), CPU)
    runner = StepRunner(policy, objective, CPU, budget, graphs=False)
    units = units_of_step(rows, micro)
    references = runner.score(units) if objective.needs_reference else None
    result = runner.train(units, references)
    grads = {n: policy.gradients.view(p).clone() for n, p in model.named_parameters() if p.requires_grad}
    return result.loss.item(), grads, result.metrics.clone()


def assert_close(got: dict, want: dict, tolerance: float = 1e-5) -> None:
    """Every gradient within a relative distance; a gradient of zero has to be zero."""
    for name, value in want.items():
        scale = value.norm().item()
        assert (got[name] - value).norm().item() <= tolerance * scale + 1e-12, name


# ---- against TRL itself


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    raw = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="t0", eos_token="t1", unk_token="t0")


def trl_arguments(folder: Path, **more) -> dict:
    return dict(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_length=CUTOFF,
        report_to="none",
        **more,
    )


@pytest.fixture(scope="module")
def trl(tmp_path_factory):
    """A DPOTrainer of TRL over the tiny model (its data set is a placeholder); tests switch its loss."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    plain = build(trained=False).unload()
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = DPOTrainer(
        model=plain,
        args=DPOConfig(**trl_arguments(tmp_path_factory.mktemp("trl"))),
        train_dataset=Dataset.from_list([{"prompt": "t2", "chosen": "t3", "rejected": "t4"}]),
        processing_class=tokenizer(),
        peft_config=config,
    )
    values = dict(build().named_parameters())
    for name, p in trainer.model.named_parameters():
        p.data.copy_(values[name].data)
    return trainer


def trl_step(trainer, rows: list[dict], micro: int = 2) -> tuple[float, dict]:
    """Loss and gradients of TRL's own compute_loss, averaged over micro-batches as accumulation does."""
    trainer.model.zero_grad()
    parts = [rows[i : i + micro] for i in range(0, len(rows), micro)]
    total = 0.0
    for part in parts:
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(part)) / len(parts)
        loss.backward()
        total += loss.item()
    grads = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    return total, grads


TRL_LOSSES = [
    ("sigmoid", {}),
    ("hinge", {}),
    ("ipo", {}),
    ("robust", {"dpo_label_smoothing": 0.1}),
    ("exo_pair", {"dpo_label_smoothing": 0.1}),
    ("nca_pair", {}),
    ("bco_pair", {}),
    ("sppo_hard", {}),
    ("apo_zero", {}),
    ("apo_down", {}),
    ("sigmoid_norm", {}),
    ("sigmoid", {"ld_alpha": 0.5}),
]


@pytest.mark.parametrize(("name", "knobs"), TRL_LOSSES)
def test_loss_and_every_gradient_equal_trl(trl, name: str, knobs: dict) -> None:
    trl.loss_types, trl.loss_weights = [name], [1.0]
    trl.label_smoothing, trl.ld_alpha = knobs.get("dpo_label_smoothing", 0.0), knobs.get("ld_alpha")
    loss, grads = trl_step(trl, pair_rows())
    got, got_grads, metrics = packed_step(build(), pair_rows(), LossSettings(pref_loss=name, **knobs))
    assert got == pytest.approx(loss, rel=1e-5)
    assert_close(got_grads, grads)
    logged = {k: np.mean(v[-4:]) for k, v in trl._metrics["train"].items()}
    names = PreferenceObjective(LossSettings(), CPU).metric_names
    for key, value in finish_metrics(names, metrics.tolist()).items():
        assert value == pytest.approx(logged[key], rel=1e-5, abs=1e-6), key


def test_pref_ftx_is_trls_sft_term_for_one_pair(trl) -> None:
    trl.loss_types, trl.loss_weights, trl.label_smoothing, trl.ld_alpha = (
        ["sigmoid", "sft"],
        [1.0, 0.3],
        0,
        None,
    )
    loss, grads = trl_step(trl, pair_rows(), micro=1)
    got, got_grads, _ = packed_step(build(), pair_rows(), LossSettings(pref_ftx=0.3), micro=1)
    assert got == pytest.approx(loss, rel=1e-5)
    assert_close(got_grads, grads)


def test_every_pairs_log_probs_equal_trl(trl) -> None:
    rows = pair_rows(12)
    trl.loss_types, trl.loss_weights, trl.ld_alpha = ["sigmoid"], [1.0], None
    want = []
    for row in rows:
        trl.compute_loss(trl.model, trl.data_collator([row]))
        want += [trl._metrics["train"][f"logps/{side}"][-1] for side in ("chosen", "rejected")]
    row = DeviceRow(pack_row(units_of_step(rows, 2)), CPU)
    got = answer_sums(FusedPolicy(build()).forward(row, False)[0][0], row)
    assert got.tolist() == pytest.approx(want, rel=1e-5)


@pytest.fixture(scope="module")
def trl_kto(tmp_path_factory):
    """A KTOTrainer of TRL over the tiny model; its data set is a placeholder."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    tmp_path = tmp_path_factory.mktemp("trl_kto")
    trainer = KTOTrainer(
        model=build(trained=False).unload(),
        args=KTOConfig(**trl_arguments(tmp_path, desirable_weight=1.0, undesirable_weight=1.3)),
        train_dataset=Dataset.from_list([{"prompt": "t2", "completion": "t3", "label": True}] * 2),
        processing_class=tokenizer(),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    values = dict(build().named_parameters())
    for name, p in trainer.model.named_parameters():
        p.data.copy_(values[name].data)
    return trainer


@pytest.mark.parametrize(
    ("count", "micro"),
    [
        (5, 1),
        (7, 3),
        *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((8, 2), (1, 1), (7, 2), (5, 8))),
    ],
)
def test_kto_equals_trl_at_every_size_of_micro_batch(trl_kto, tmp_path, count: int, micro: int) -> None:
    """Loss, gradients, distance and evaluation; the last micro-batch may be short or of one row."""
    rows = labelled_rows(8)[:count]
    trl_kto._metrics["train"].clear()
    loss, grads = trl_step(trl_kto, rows, micro)
    settings = LossSettings(pref_loss="kto", kto_rejected_weight=1.3)
    got, got_grads, metrics = packed_step(build(), rows, settings, micro=micro)
    assert got == pytest.approx(loss, rel=1e-5)
    assert_close(got_grads, grads)
    found = finish_metrics(PreferenceObjective(settings, CPU).metric_names, metrics.tolist())
    assert found["kl"] == pytest.approx(np.mean(trl_kto._metrics["train"]["kl"]), rel=1e-4, abs=1e-6)
    evaluation = {"per_device_eval_batch_size": micro}
    measured = PackedTrainer(
        build(),
        arguments(tmp_path, **evaluation),
        None,
        rows,
        objective=lambda d: PreferenceObjective(settings, d),
    ).evaluate()
    whole = [rows[i : i + micro] for i in range(0, count, micro)]
    with torch.no_grad():
        by_row = [
            trl_kto.compute_loss(trl_kto.model, trl_kto.data_collator(b)).item() for b in whole for _ in b
        ]
    assert measured["eval_loss"] == pytest.approx(np.mean(by_row), rel=1e-5)
    assert measured["eval_kl"] == pytest.approx(found["kl"], rel=1e-5, abs=1e-7)


def test_simpo_and_orpo_equal_trls_experimental_formulas(monkeypatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    g = torch.Generator().manual_seed(0)
    chosen, rejected = (-40 * torch.rand(6, generator=g) - 0.01 for _ in range(2))
    lengths = torch.randint(1, 30, (2, 6), generator=g)
    mean = chosen / lengths[0], rejected / lengths[1]
    fake = SimpleNamespace(
        alpha=0.0,
        simpo_gamma=0.5,
        beta=0.1,
        loss_type="simpo",
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device=CPU),
    )
    ours = lambda n: preference_loss(n, chosen, rejected, None, None, *lengths, LossSettings(pref_loss=n))[0]  # noqa: E731
    assert torch.allclose(ours("simpo"), CPOTrainer.cpo_loss(fake, *mean)[0], rtol=1e-5)
    odds = ORPOTrainer.odds_ratio_loss(fake, *mean)[0]  # TRL subtracts this from the likelihood term
    assert torch.allclose(ours("orpo"), -mean[0] - odds, rtol=1e-5)


# ---- against itself and against transformers


SEVERAL = ["qwen2", "qwen3", "llama", "neox", "mistral", "gemma2", "gemma3_text", "phi3", "glm4", "olmo3"]


@pytest.mark.parametrize("family", SEVERAL)
def test_log_probs_and_gradients_equal_the_models_own_forward(family: str) -> None:
    model, units = (
        build(family),
        units_of_step(pair_rows() + [{"prompt_ids": [], "chosen_ids": [5, 6, 7], "rejected_ids": [8]}], 2),
    )
    want = []
    for unit in units:
        for answer in unit.answers:
            ids = torch.from_numpy(np.concatenate([unit.prompt, answer])).long()
            logps = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            want.append(logps.gather(1, ids[1:, None])[:, 0][max(0, len(unit.prompt) - 1) :])
    want = torch.cat(want)
    weights = torch.randn(len(want))
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad((want * weights).sum(), parameters)
    policy = FusedPolicy(model) if fused_refusal(model) is None else AutogradPolicy(model)
    assert isinstance(policy, AutogradPolicy) == (family == "neox")
    row = DeviceRow(pack_row(units), CPU)
    got, context = policy.forward(row, keep=True)
    assert torch.allclose(got, want, atol=2e-6)
    policy.backward(weights, row, context)
    for p, grad in zip(parameters, grads, strict=True):
        assert (policy.gradients.view(p) - grad).norm() <= 1e-5 * grad.norm()
    with policy.reference(), model.disable_adapter():
        assert not torch.allclose(policy.forward(row, False)[0], want, atol=1e-2)


@pytest.mark.parametrize("resize", [False, True])
def test_changing_one_pair_leaves_the_others_bit_identical(resize: bool) -> None:
    policy, rows = FusedPolicy(build()), pair_rows()
    other = copy.deepcopy(rows)
    other[4] = (
        pair_rows(seed=7)[4] if resize else {k: [(i + 1) % VOCAB for i in v] for k, v in rows[4].items()}
    )
    sums = []
    for variant in (rows, other):
        row = DeviceRow(pack_row(units_of_step(variant, 2)), CPU)
        sums.append(answer_sums(policy.forward(row, False)[0][0], row).view(-1, 2))
    same = [i for i in range(len(rows)) if i != 4]
    assert torch.equal(sums[0][same], sums[1][same])
    assert not torch.equal(sums[0][4], sums[1][4])


@pytest.mark.parametrize("name", ["sigmoid", "kto"])
def test_splitting_the_budget_changes_nothing(name: str) -> None:
    rows = labelled_rows() if name == "kto" else pair_rows()
    whole = packed_step(build(), rows, LossSettings(pref_loss=name))
    split = packed_step(build(), rows, LossSettings(pref_loss=name), budget=70)
    assert len(split_units(units_of_step(rows, 2), 70, name == "kto")) > 2
    assert split[0] == pytest.approx(whole[0], rel=1e-6)
    assert_close(split[1], whole[1], 1e-6)


def test_bco_mixing_moves_its_baseline_once_per_micro_batch() -> None:
    model, objective = build(), PreferenceObjective(LossSettings(pref_bco_weight=0.5), CPU)
    runner = StepRunner(FusedPolicy(model), objective, CPU, 10_000, graphs=False)
    units = units_of_step(pair_rows(), 2)
    result = runner.train(units, runner.score(units))
    rewards = (result.metrics[0] + result.metrics[1]) / (2 * len(units))
    assert objective.baseline.count == 4 and objective.baseline.mean == pytest.approx(
        rewards.item(), rel=1e-4
    )


def test_recomputed_layers_and_padding_give_the_same_bits() -> None:
    model, units = build("qwen3"), units_of_step(pair_rows(), 2)
    policy = FusedPolicy(model)
    exact, padded = exact_shape(units), bucket_shape(units, 12)
    padded = RowShape(padded.tokens, padded.scored, padded.units, padded.answers)
    results = []
    for recompute, shape in ((0, exact), (2, exact), (1, padded)):
        policy.trunk.recompute = recompute
        policy.gradients.flat.zero_()
        row = DeviceRow(pack_row(units, shape=shape), CPU)
        (logps,), context = policy.forward(row, keep=True)
        policy.backward(torch.cos(torch.arange(len(logps))) * (row["token_weights"] > 0), row, context)
        results.append((logps[: exact.scored], policy.gradients.flat.clone()))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert torch.allclose(results[0][0], results[2][0], atol=1e-6)
    assert torch.allclose(results[0][1], results[2][1], atol=1e-5)


def test_levels_leave_the_least_padding_and_hold_their_rows() -> None:
    lengths = np.random.default_rng(3).integers(100, 1500, size=60)
    sizes = np.stack([lengths, lengths // 3], 1)
    levels = choose_levels(sizes, 3)
    every = sorted({-(-(n + 1) // 64) * 64 for n in lengths})
    padded = lambda edges: sum(min(e for e in edges if e > n) for n in lengths)  # noqa: E731
    best = min(padded((*some, every[-1])) for some in itertools.combinations(every[:-1], 2))
    assert padded([tokens for tokens, _ in levels]) == best
    assert choose_levels(np.array([[130, 63]]), 5) == [(192, 64)]


def test_a_row_takes_the_cheapest_level_that_holds_it_and_a_longer_one_its_own_size() -> None:
    units = units_of_step(pair_rows(), 2)
    exact = exact_shape(units)
    big = (exact.tokens + 64, exact.scored + 64)
    tight = (exact.tokens + 1, exact.scored)  # no place for a padding token's prediction
    shape = level_shape(units, 20, [tight, (big[0], big[1] + 999), big])
    assert (shape.tokens, shape.scored, shape.units) == (*big, 20)
    assert level_shape(units, 8, [(exact.tokens, 9999)]) == bucket_shape(units, 8)
    drawn = drawn_sizes(pair_rows(), lambda rows: units_of_step(rows, 2), 4, 60, False)
    assert (drawn == drawn_sizes(pair_rows(), lambda rows: units_of_step(rows, 2), 4, 60, False)).all()
    assert len(drawn) > 512 and drawn.max() <= 60  # a step over the budget is several rows
    assert level_count(40) == 5 and level_count(10_000) == 16


def test_peft_sees_its_own_weights_during_and_after() -> None:
    """The frozen weights become views and the adapters stay PEFT's: its forward, saving and merging are
    untouched."""
    model, ids = build(), torch.randint(1, VOCAB, (1, 9))
    before, saved = model(input_ids=ids).logits, {k: v.clone() for k, v in model.state_dict().items()}
    packed_step(model, pair_rows())
    assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-6)
    assert all(torch.equal(v, saved[k]) for k, v in model.state_dict().items())


# ---- the trainer


def arguments(folder: Path, **more) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=2e-2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=3,
        **more,
    )


def test_training_learns_stops_resumes_and_evaluates(tmp_path) -> None:
    rows = pair_rows(12)
    options = {"max_steps": 12, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 6}
    whole = PackedTrainer(
        build(trained=False), arguments(tmp_path / "a", **options), rows, rows[:5], objective=pairs
    )
    whole.train()
    history = whole.state.log_history
    losses = [h["loss"] for h in history if "loss" in h]
    assert losses[0] == pytest.approx(np.log(2), rel=1e-4) and losses[-1] < 0.6
    assert all(h["grad_norm"] > 0 for h in history if "loss" in h)
    assert {"rewards/accuracies", "rewards/margins", "logps/chosen"} <= set(history[0])
    final = next(h for h in reversed(history) if "eval_loss" in h)
    assert final["eval_rewards/accuracies"] >= 0.6
    again = PackedTrainer(
        build(trained=False), arguments(tmp_path / "a", **options), rows, rows[:5], objective=pairs
    )
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    resumed = [h["loss"] for h in again.state.log_history if "loss" in h]
    assert resumed == pytest.approx(losses, rel=1e-5)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_last_short_step_weighs_micro_batches_like_accumulation(tmp_path) -> None:
    units = units_of_step(pair_rows(7)[4:], 2)  # two micro-batches: of two pairs and of one
    assert [u.weight for u in units] == [0.25, 0.25, 0.5] and [u.group for u in units] == [0, 0, 1]


def test_references_are_computed_once_and_found_by_the_next_run(tmp_path, monkeypatch) -> None:
    calls = []
    original = StepRunner.score
    monkeypatch.setattr(
        StepRunner, "score", lambda self, units: calls.append(len(units)) or original(self, units)
    )
    engine = EngineSettings(reference_cache=tmp_path / "cache")
    rows = pair_rows(8)
    for model in (build(trained=False), build(trained=False)):
        PackedTrainer(model, arguments(tmp_path, max_steps=4), rows, engine=engine, objective=pairs).train()
    assert sum(calls) == len(rows)
    other = build(trained=False)
    other.get_base_model().lm_head.weight.data[3, 3] += 1e-3
    PackedTrainer(other, arguments(tmp_path, max_steps=2), rows, engine=engine, objective=pairs).train()
    assert sum(calls) == 2 * len(rows) and len(list((tmp_path / "cache").iterdir())) == 2


def test_rows_padded_to_the_levels_of_their_data_train_the_same(tmp_path) -> None:
    losses = []
    for padded in (False, True):
        trainer = PackedTrainer(
            build(trained=False),
            arguments(tmp_path, max_steps=6),
            pair_rows(12),
            pair_rows(4),
            objective=pairs,
        )
        runner = trainer.prepare()
        if padded:  # as where steps are replayed from graphs
            runner.levels, runner.bucketed = trainer._levels(runner), True
            sizes = {row.shape for row in runner._rows(units_of_step(pair_rows(4), 2), None, runner.levels)}
            assert {(shape.tokens, shape.scored) for shape in sizes} <= set(runner.levels)
        trainer.train()
        losses.append([h["loss"] for h in trainer.state.log_history if "loss" in h])
        losses[-1].append(trainer.evaluate()["eval_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_what_a_model_does_with_its_weights_is_in_a_cache_s_name() -> None:
    """Positions stretched, or another window, are other references of the same weights; another folder is not."""
    model = build("mistral", trained=False)
    config, first = model.config, weights_fingerprint(model, torch.float32)
    config._name_or_path, config.use_cache = "elsewhere", False
    assert weights_fingerprint(model, torch.float32) == first
    names = {first}
    for name, value in [
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
        ("sliding_window", 7),
    ]:
        setattr(config, name, value)
        names.add(weights_fingerprint(model, torch.float32))
    assert len(names) == 3


def test_gemma_s_activation_is_the_one_that_its_layers_have() -> None:
    """They never read what later generations are told by."""
    config = AutoConfig.for_model("gemma", hidden_act="silu", hidden_activation="gelu_pytorch_tanh")
    assert activation_of(config) == "silu"


def test_a_broken_cache_file_is_made_anew(tmp_path) -> None:
    model = build(trained=False)
    name = weights_fingerprint(model, torch.float32)
    (tmp_path / f"{name}.npz").write_bytes(b"PK\x03\x04 half a file")
    engine = EngineSettings(reference_cache=tmp_path)
    trainer = PackedTrainer(
        model, arguments(tmp_path / "o", max_steps=2), pair_rows(), engine=engine, objective=pairs
    )
    trainer.train()
    assert len(np.load(tmp_path / f"{name}.npz")["values"]) >= 8


def test_out_of_memory_is_met_once_with_less(tmp_path, monkeypatch) -> None:
    original, failures = StepRunner.train, []

    def fail_once(self, units, references):
        if not failures:
            failures.append(self.budget)
            raise torch.OutOfMemoryError("no room")
        return original(self, units, references)

    monkeypatch.setattr(StepRunner, "train", fail_once)
    trainer = PackedTrainer(
        build(trained=False), arguments(tmp_path, max_steps=2), pair_rows(), objective=pairs
    )
    trainer.train()
    assert trainer.runner.budget == failures[0] // 2 and trainer.runner.policy.recompute == 2


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "phi3", "starcoder2"])
def test_a_sliding_window_is_obeyed(family: str) -> None:
    """Rows longer than the window have the model's own log-probs, and not those of full attention."""
    window = 16
    sliding = {"use_sliding_window": True, "max_window_layers": 1} if family.startswith("qwen") else {}
    settings = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    ids = np.random.default_rng(0).integers(1, VOCAB, 40).tolist()
    row = [{"prompt_ids": ids[:14], "chosen_ids": ids[14:], "rejected_ids": ids[14:20]}]
    found = []
    for size in (window, None):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **SIZES, sliding_window=size, **(sliding if size else {}))
        model = get_peft_model(AutoModelForCausalLM.from_config(config, dtype=torch.float32), settings).eval()
        policy = FusedPolicy(model) if fused_refusal(model) is None else AutogradPolicy(model)
        got = policy.forward(DeviceRow(pack_row(units_of_step(row, 1)), CPU), False)[0][0, : 40 - 14]
        logps = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        want = logps.gather(1, torch.tensor(ids)[1:, None])[13:, 0]
        assert torch.allclose(got, want, atol=1e-5)
        found.append(got)
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_heads_of_odd_sizes_are_left_to_autograd_on_a_gpu() -> None:
    """Triton compiles no block of 100 numbers, the head of OpenLLaMA-3B: found on an H100, where such a run died."""
    assert head_refusal(64, "cuda") is None and head_refusal(100, "cpu") is None
    assert "have 100 numbers" in (head_refusal(100, "cuda") or "") and head_refusal(8, "cuda")


def test_what_the_engine_does_not_take_is_said_in_a_sentence() -> None:
    assert not unsupported(build())
    dora = LoraConfig(r=2, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    assert fused_refusal(magnitudes := get_peft_model(FAMILIES["llama"](), dora)) and not unsupported(
        magnitudes
    )
    other = IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    assert "not LoRA" in str(unsupported(get_peft_model(FAMILIES["llama"](), other)))
