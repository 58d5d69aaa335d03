"""The loss formulas, held to closed values, to autograd finiteness and to the limits they must meet."""

import math

import pytest
import torch

from tuner.engine.losses import (
    PAIR_LOSSES,
    LossSettings,
    canonical_name,
    kl_estimate,
    kto_loss,
    needs_reference,
    preference_loss,
    running_baseline,
)


def scores(seed: int = 0, n: int = 6) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda: -30 * torch.rand(n, generator=g)  # noqa: E731
    return {
        "policy_chosen": draw(),
        "policy_rejected": draw(),
        "ref_chosen": draw(),
        "ref_rejected": draw(),
        "chosen_lengths": torch.randint(1, 40, (n,), generator=g),
        "rejected_lengths": torch.randint(1, 40, (n,), generator=g),
    }


def settings_for(name: str) -> LossSettings:
    return LossSettings(pref_loss=name, dpo_label_smoothing=0.1 if name in ("robust", "exo_pair") else 0.0)


def test_the_first_step_of_dpo_is_ln_2_for_any_policy() -> None:
    s = scores()
    s["ref_chosen"], s["ref_rejected"] = s["policy_chosen"], s["policy_rejected"]
    losses, chosen, rejected = preference_loss("sigmoid", **s, settings=LossSettings())
    assert torch.allclose(losses, torch.full_like(losses, math.log(2)))
    assert not chosen.any() and not rejected.any()


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_every_loss_prefers_the_chosen_answer(name: str) -> None:
    """One gradient step on the scores widens the margin between the answers (apo_down lowers both)."""
    s = scores()
    s["chosen_lengths"] = s["rejected_lengths"] = torch.full((6,), 20)
    s["ref_chosen"], s["ref_rejected"] = s["policy_chosen"].clone(), s["policy_rejected"].clone()
    leaves = [s["policy_chosen"].requires_grad_(), s["policy_rejected"].requires_grad_()]
    losses, _, _ = preference_loss(name, **s, settings=settings_for(name))
    up, down = torch.autograd.grad(losses.sum(), leaves)
    assert torch.isfinite(up).all() and torch.isfinite(down).all()
    assert ((down - up) >= 0).all() and ((down - up) > 0).any()


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_extreme_and_equal_scores_stay_finite(name: str) -> None:
    policy = torch.tensor([-1e-7, -2000.0, -5.0, 0.0], requires_grad=True)
    other = torch.tensor([-2000.0, -1e-7, -5.0, -3.0], requires_grad=True)
    lengths = torch.tensor([1, 1, 0, 3])
    ref = torch.tensor([-5.0, -5.0, -5.0, -5.0])
    losses, _, _ = preference_loss(name, policy, other, ref, ref, lengths, lengths, settings_for(name))
    grads = torch.autograd.grad(losses[1:].sum(), [policy, other])
    assert torch.isfinite(losses[1:]).all() and all(torch.isfinite(g).all() for g in grads)


def test_smoothing_is_the_mixture_of_both_orders() -> None:
    s = scores()
    swapped = {
        "policy_chosen": s["policy_rejected"],
        "policy_rejected": s["policy_chosen"],
        "ref_chosen": s["ref_rejected"],
        "ref_rejected": s["ref_chosen"],
        "chosen_lengths": s["rejected_lengths"],
        "rejected_lengths": s["chosen_lengths"],
    }
    smooth = preference_loss("sigmoid", **s, settings=LossSettings(dpo_label_smoothing=0.3))[0]
    plain, flipped = (preference_loss("sigmoid", **x, settings=LossSettings())[0] for x in (s, swapped))
    assert torch.allclose(smooth, 0.7 * plain + 0.3 * flipped)


def test_ftx_and_bco_mix_as_documented() -> None:
    s = scores()
    plain = preference_loss("sigmoid", **s, settings=LossSettings())[0]
    bco = preference_loss("bco_pair", **s, settings=LossSettings(pref_loss="bco_pair"))[0]
    nll = -s["policy_chosen"] / s["chosen_lengths"]
    mixed = preference_loss("sigmoid", **s, settings=LossSettings(pref_ftx=0.5, pref_bco_weight=0.25))[0]
    assert torch.allclose(mixed, (plain + 0.5 * nll + 0.25 * bco) / 1.25)


def test_simpo_and_orpo_ignore_the_reference_and_report_mean_log_probs() -> None:
    s = scores()
    for name in ("simpo", "orpo"):
        with_ref = preference_loss(name, **s, settings=LossSettings(pref_loss=name))
        without = preference_loss(
            name, **{**s, "ref_chosen": None, "ref_rejected": None}, settings=LossSettings(pref_loss=name)
        )
        assert all(torch.equal(a, b) for a, b in zip(with_ref, without, strict=True))
        assert torch.allclose(with_ref[1], 0.1 * s["policy_chosen"] / s["chosen_lengths"])
    with pytest.raises(ValueError, match="needs reference"):
        preference_loss("sigmoid", **{**s, "ref_chosen": None}, settings=LossSettings())


def test_kto_weights_sides_and_never_goes_below_zero_kl() -> None:
    policy, ref = torch.tensor([-3.0, -4.0]), torch.tensor([-5.0, -2.0])
    kl = kl_estimate(torch.tensor([-9.0, -9.0]), torch.tensor([-4.0, -4.0]))
    assert kl == 0
    losses, rewards = kto_loss(
        policy, ref, torch.tensor([1.0, 0.0]), kl, LossSettings(kto_rejected_weight=2.0)
    )
    sig = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert losses.tolist() == pytest.approx([1 - sig(0.2), 2 * (1 - sig(0.2))])
    assert rewards.tolist() == pytest.approx([0.2, -0.2])


def test_running_baseline_is_the_mean_of_all_micro_batches_so_far() -> None:
    zero, valid = torch.tensor(0.0), torch.tensor([1.0, 1.0, 0.0])
    deltas, mean, count = running_baseline(torch.tensor([1.0, 3.0, 9.0]), valid, zero, zero)
    assert deltas.tolist() == [1.0, 2.0, 2.0] and (mean.item(), count.item()) == (2.0, 2.0)
    assert running_baseline(torch.tensor([5.0]), torch.ones(1), mean, count)[0].tolist() == [3.0]


def test_names_and_impossible_settings_are_refused_in_words() -> None:
    assert canonical_name("sppo") == "sppo_hard" and needs_reference("nca") and not needs_reference("orpo")
    with pytest.raises(ValueError, match="Choose one of"):
        LossSettings(pref_loss="dpoo")
    with pytest.raises(ValueError, match="below 0.5"):
        LossSettings(pref_loss="robust", dpo_label_smoothing=0.5)
    with pytest.raises(ValueError, match="above 0"):
        LossSettings(pref_loss="exo_pair")
    with pytest.raises(ValueError, match="reference"):
        LossSettings(pref_loss="simpo", pref_bco_weight=1.0)
