"""The knobs of stages that learn from rewards: whose they are, their defaults by stage, what stands against them."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from tuner.config.config import KNOBS, Config, check, make
from tuner.config.kinds import BASELINED, CLIPPED, GROUPED, REWARDED, VALUED
from tuner.config.reading import parse_words
from tuner.config.without_effect import unheeded
from tuner.config.writing import command
from tuner.ui.draft import Draft

BASE = {"model_name_or_path": "m", "dataset": "d", "do_train": True, "reward_funcs": ["json_valid"]}


def of(stage: str, **more: Any) -> Config:
    return make({**BASE, "stage": stage, **more})


def test_each_knob_is_shown_for_those_that_have_it() -> None:
    assert (REWARDED, GROUPED, CLIPPED, BASELINED, VALUED) == (
        ("grpo", "rloo", "ppo"), ("grpo", "rloo"), ("grpo",), ("rloo",), ("ppo",),
    )  # fmt: skip

    def shown(stage: str) -> set[str]:
        return {name for name, knob in KNOBS.items() if knob.applies({"stage": stage, "do_predict": False})}

    assert {"num_generations", "loss_type", "temperature", "max_new_tokens", "ref_model"} <= shown("grpo")
    assert "pref_beta" not in shown("grpo") and "normalize_advantages" in shown("rloo") - shown("grpo")
    assert {"ppo_epochs", "reward_model", "top_p"} <= shown("ppo") and "num_generations" not in shown("ppo")
    assert not {"temperature", "reward_funcs", "beta"} & shown("sft")
    assert KNOBS["temperature"].applies({"stage": "sft", "do_predict": True})


def test_a_stage_has_defaults_of_its_own() -> None:
    drawn = [(c.temperature, c.top_p, c.top_k, c.max_new_tokens) for c in map(of, ("grpo", "rloo", "ppo"))]
    assert drawn == [(1.0, 1.0, 0, 512)] * 2 + [(0.95, 0.7, 50, 1024)]
    assert [(c.num_generations, c.beta) for c in map(of, ("grpo", "rloo"))] == [(8, 0.0), (2, 0.05)]
    assert "temperature" not in of("grpo").changed() and "--temperature" not in command(of("grpo"))


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 0.95), ("temperature", 1.0), ("beta", 0.0), ("top_k", None)]
)
def test_a_value_survives_whichever_default_it_is(name: str, value: Any) -> None:
    config = of("rloo", **{name: value})
    assert getattr(config, name) == (0 if value is None else value)
    assert make(config.changed()) == config == make(config.plain())
    words = shlex.split(command(config).replace("\\\n", " "))
    assert make(parse_words(words[2:])) == config


def test_the_form_shows_the_default_of_the_stage() -> None:
    draft = Draft(base={"stage": "rloo"})
    assert (draft.value("beta"), draft.origin("beta"), draft.value("pref_beta")) == (0.05, 0.05, 0.1)
    assert draft.with_value("stage", "grpo").value("beta") == 0.0
    assert draft.with_value("beta", 0.05).changes == {} and draft.with_value("beta", 0.0).changes == {
        "beta": 0.0
    }


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"stage": "dpo", "beta": 0.2, "reward_funcs": ()}, "with --stage dpo say --pref_beta"),
        ({"stage": "sft"}, "--reward_funcs is for --stage grpo, rloo or ppo; stage sft asks for none"),
        ({"stage": "grpo", "reward_funcs": ()}, "Nothing says which answers are good"),
        ({"stage": "grpo", "reward_weights": "1,2"}, "--reward_weights has 2 numbers for 1 rewards"),
        ({"stage": "ppo", "reward_model_adapters": "a"}, "belong to a --reward_model"),
        ({"stage": "ppo", "reward_model": "folder", "reward_model_type": "api"}, "is no address"),
        ({"stage": "ppo", "reward_model": "http://h/x"}, "set --reward_model_type api"),
        ({"stage": "grpo", "num_generations": 1}, "greater than or equal to 2"),
        ({"stage": "rloo", "reward_clip_range": "5,-5"}, "two numbers, the lower one first"),
        ({"stage": "grpo", "temperature": 0}, "--temperature 0 always takes the most likely token"),
        ({"stage": "ppo", "max_new_tokens": 0}, "--max_new_tokens 0 leaves no room"),
        ({"stage": "grpo", "loss_type": "sigmoid"}, "it is one of dapo, grpo, dr_grpo, bnpo"),
        ({"stage": "grpo", "streaming": True, "max_steps": 3}, "--streaming does not work with stage grpo"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_sentence(values: dict[str, Any], sentence: str) -> None:
    problems = check({**BASE, **values})[1]
    assert any(sentence in p.sentence for p in problems), problems
    for problem in problems:
        if problem.mend:
            mended = check({**BASE, **values, **problem.mend})[1]
            assert problem.sentence not in [p.sentence for p in mended]


def test_names_of_other_tools_are_taken() -> None:
    config = of("grpo", max_completion_length=64, reward_clip_range=None)
    assert config.max_new_tokens == 64 and config.reward_clip_range is None
    assert of("rloo", reward_clip_range="-5,5").reward_clip_range == (-5.0, 5.0)
    assert "did you mean --beta?" in check({**BASE, "stage": "grpo", "kl_coef": 0.1})[1][0].sentence


def test_knobs_of_a_search_are_told_to_have_no_effect_where_answers_are_drawn() -> None:
    assert "--do_sample, --num_beams have no effect" in " ".join(
        unheeded(of("grpo", do_sample=False, num_beams=4))
    )
    assert KNOBS["repetition_penalty"].applies({"stage": "grpo", "do_predict": False})
    assert not list(unheeded(of("grpo", repetition_penalty=1.1)))


def test_a_probe_beside_rows_kept_aside_is_told_to_have_no_effect() -> None:
    assert not list(unheeded(of("grpo", probe="p")))
    said = list(unheeded(of("grpo", probe="p", val_size=0.1)))
    assert said == ["--probe has no effect: the rows kept aside are asked and scored instead."]
