"""Packed rows of models that take pictures: scores and every gradient are those of transformers' own forward, a row at a time."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vision
import torch
from peft import LoraConfig, get_peft_model
from subsets import some
from torch.nn.functional import log_softmax

from tuner.config.config import make
from tuner.data.pictures.opening import PictureError
from tuner.engine.packed.autograd_policy import AutogradPolicy
from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.opening import Opening
from tuner.engine.packed.pictures import Album
from tuner.engine.packed.policy import FusedPolicy, fused_refusal
from tuner.engine.packed.rows import exact_shape, pack_row
from tuner.engine.packed.units import Unit, units_of_step, units_of_tokens
from tuner.models import tower_attention
from tuner.models.vision import Sight, sight_of, tower_of

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3")
PICTURES = [[0], [], [1, 2], [3], [0, 3]]
"""Which pictures each of the texts has."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return tiny_vision.pictures(tmp_path_factory.mktemp("pictures"), 4)


def model_of(folder: Path, kind: str) -> tuple[Any, Sight]:
    """A model with an adapter that does something, and how it is shown pictures."""
    from transformers import AutoModelForImageTextToText

    tiny_vision.model(folder, kind)
    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    sight = sight_of(model, folder, make({"stage": "sft", "model_name_or_path": str(folder), "dataset": "x"}))
    assert sight is not None
    targets = r".*(language_model|text_model).*\.(q_proj|v_proj|down_proj)"
    model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    return model, sight


def text(
    sight: Sight, files: list[str], numbers: list[int], seed: int
) -> tuple[list[int], list[dict[str, Any]]]:
    """Ids with the tokens of pictures among words, and the pictures' own tensors."""
    draw = np.random.default_rng(seed)
    seen = [sight.pixels([[files[i]]]) for i in numbers]
    ids: list[int] = draw.integers(10, 300, 3).tolist()
    for one in seen:
        ids += [sight.image_token] * tokens(one) + draw.integers(10, 300, 2).tolist()
    return ids + draw.integers(10, 300, 5).tolist(), seen


def tokens(pixels: dict[str, Any]) -> int:
    """How many tokens a picture has: four patches are one; 56 pixels of 14 in a square are four."""
    if "image_grid_thw" in pixels:
        return int(pixels["image_grid_thw"].prod()) // 4
    return 4 * pixels["pixel_values"].shape[1]


def plain(model: Any, sight: Sight, ids: list[int], seen: list[dict[str, Any]]) -> torch.Tensor:
    """Log-probabilities [T - 1] of a text's tokens by the model's own forward."""
    given = torch.tensor([ids])
    nested = "image_grid_thw" not in (seen[0] if seen else {})
    pixels = {
        name: torch.cat([one[name] for one in seen], dim=1 if nested else 0)
        for name in (seen[0] if seen else {})
    }
    logits = model(input_ids=given, **pixels, **sight.kinds(given), use_cache=False).logits[0, :-1]
    return log_softmax(logits.float(), -1).gather(1, given[0, 1:, None])[:, 0]


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


def laid(album: Album, units: list[Unit]) -> DeviceRow:
    return DeviceRow(pack_row(units, shape=exact_shape(units)), torch.device("cpu"), beside=album.lay)


def packed(policy: Any, model: Any, row: DeviceRow) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Scores [N], and the gradients of their weighted sum."""
    policy.gradients.flat.zero_()
    scores, context = policy.forward(row, keep=True)
    policy.backward(weights(len(scores[0])), row, context)
    return scores[0], [policy.gradients.view(p).clone() for p in model.parameters() if p.requires_grad]


def weights(count: int) -> torch.Tensor:
    return torch.linspace(0.5, 1.5, count)


POLICIES: dict[str, Any] = {"own": AutogradPolicy, "written": FusedPolicy}


@pytest.mark.parametrize("kind", some(KINDS, "qwen2_5_vl", "qwen3_vl", "smolvlm"))
@pytest.mark.parametrize(
    ("engine", "recompute"), [("own", False), ("own", True), ("written", False), ("written", True)]
)
def test_texts_with_pictures(
    tmp_path: Path, files: list[str], kind: str, engine: str, recompute: bool
) -> None:
    model, sight = model_of(tmp_path / kind, kind)
    texts = [text(sight, files, numbers, seed) for seed, numbers in enumerate(PICTURES)]
    wanted = torch.cat([plain(model, sight, ids, seen) for ids, seen in texts])
    expected = gradients(model, (wanted * weights(len(wanted))).sum())
    album, policy = Album(model.get_base_model(), sight), POLICIES[engine](model)
    policy.recompute = policy.layers if recompute else 0
    rows = [
        {"input_ids": ids, "labels": ids, "images": tuple(files[i] for i in numbers)}
        for (ids, _), numbers in zip(texts, PICTURES, strict=True)
    ]
    together = {
        "input_ids": [i for row in rows for i in row["input_ids"]],
        "labels": [i for row in rows for i in row["labels"]],
        "seq_lengths": [len(row["input_ids"]) for row in rows],
        "images": tuple(path for row in rows for path in row["images"]),
        "image_counts": tuple(len(row["images"]) for row in rows),
    }
    for given in (rows, [together]):  # the second time nothing is looked at
        scores, found = packed(policy, model, laid(album, units_of_tokens(given)))
        assert torch.allclose(scores, wanted.detach(), atol=1e-5)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, atol=1e-4 * max(1.0, float(other.abs().max())))
    assert len(album.kept) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_share_their_prompt_and_its_pictures(tmp_path: Path, files: list[str], kind: str) -> None:
    model, sight = model_of(tmp_path / kind, kind)
    prompts = [text(sight, files, numbers, seed) for seed, numbers in enumerate(PICTURES[:3])]
    answers = [([11, 12, 13], [14, 15]), ([16], [17, 18, 19, 20]), ([21, 22], [23, 24])]
    wanted = []
    for (ids, seen), pair in zip(prompts, answers, strict=True):
        wanted += [plain(model, sight, ids + answer, seen)[len(ids) - 1 :] for answer in pair]
    every = torch.cat(wanted)
    expected = gradients(model, (every * weights(len(every))).sum())
    rows = [
        {
            "prompt_ids": ids,
            "chosen_ids": pair[0],
            "rejected_ids": pair[1],
            "images": tuple(files[i] for i in numbers),
        }
        for (ids, _), pair, numbers in zip(prompts, answers, PICTURES, strict=False)
    ]
    assert fused_refusal(model) is None
    album, policy = Album(model.get_base_model(), sight), FusedPolicy(model)
    scores, found = packed(policy, model, laid(album, units_of_step(rows, 3)))
    assert torch.allclose(scores, every.detach(), atol=1e-5)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4 * max(1.0, float(other.abs().max())))
    with policy.reference():
        before, _ = policy.forward(laid(album, units_of_step(rows, 3)), keep=False)
    with model.disable_adapter(), torch.no_grad():
        base = [
            plain(model, sight, ids + answer, seen)[len(ids) - 1 :]
            for (ids, seen), pair in zip(prompts, answers, strict=True)
            for answer in pair
        ]
    assert torch.allclose(before[0], torch.cat(base), atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_pictures_that_are_looked_at_together_are_seen_as_one_by_one(tmp_path: Path, kind: str) -> None:
    files = tiny_vision.pictures(tmp_path / "sizes", 7, (56, 84, 112))
    model, sight = model_of(tmp_path / kind, kind)
    inner, own = model.get_base_model(), tower_of(model)
    opened = [sight.pixels([[path]]) for path in files]
    assert len({tuple(one["image_grid_thw"][0].tolist()) for one in opened}) > 2
    with torch.no_grad():
        wanted = [
            inner.base_model.get_image_features(**one, return_dict=True).pooler_output[0] for one in opened
        ]
    config = inner.get_submodule(own).config
    before = config._attn_implementation
    seen = Album(inner, sight).of(files, torch.device("cpu"))
    assert config._attn_implementation == before
    assert all(torch.allclose(a.features, b, atol=1e-5) for a, b in zip(seen, wanted, strict=True))


def test_windows_of_one_length_are_one_call() -> None:
    one, two = tower_attention._grouped(torch.tensor([0, 4, 8, 10, 10, 14]))
    assert (one.length, one.places.tolist()) == (4, [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13])  # type: ignore[union-attr]
    assert (two.length, two.places.tolist()) == (2, [8, 9])  # type: ignore[union-attr]
    assert tower_attention._grouped(torch.tensor([0, 4, 8])) == [tower_attention.Group(4, None)]


def test_what_is_seen_is_kept_while_there_is_room(tmp_path: Path, files: list[str]) -> None:
    model, sight = model_of(tmp_path / "m", "qwen2_5_vl")
    album = Album(model.get_base_model(), sight, room=1)  # for one at a time
    first = album.of(files, torch.device("cpu"))
    again = album.of(files[::-1], torch.device("cpu"))[::-1]
    assert len(album.kept) == 1
    assert all(torch.allclose(a.features, b.features, atol=1e-6) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("readers", [1, 2])
def test_pictures_of_the_next_step_are_opened_while_this_one_is_worked_on(
    tmp_path: Path, files: list[str], readers: int
) -> None:
    model, sight = model_of(tmp_path / "m", "qwen2_5_vl")
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(files[3]).read_bytes()[:60])
    cpu, rows = (
        torch.device("cpu"),
        [{"images": (files[1],)}, {"images": ()}, {"images": (files[0], files[2])}],
    )
    wanted = Album(model.get_base_model(), sight).of(files[:3], cpu)
    album = Album(model.get_base_model(), sight, readers=readers)
    album.expect(rows)
    assert not album.opening.next, "the image processor has imported nothing yet"
    first = album.of(files[:1], cpu)
    album.expect(rows)
    assert list(album.opening.next) == files[1:3], "what was seen is not opened again"
    album.expect([{"images": (str(broken),)}])
    rest = album.of(files[1:3], cpu)
    assert not album.opening.coming and list(album.opening.next) == [str(broken)]
    assert all(torch.equal(a.features, b.features) for a, b in zip([*first, *rest], wanted, strict=True))
    with pytest.raises(PictureError, match="damaged"):
        album.of([str(broken)], cpu)


def test_pictures_are_opened_here_where_the_process_that_did_was_killed(
    tmp_path: Path, files: list[str]
) -> None:
    _, sight = model_of(tmp_path / "m", "qwen2_5_vl")
    opening = Opening(sight, 2)
    wanted = opening.all(files)
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    for _ in range(2):
        opening.begin(files)
        again = opening.all(files)
        assert all(
            torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(again, wanted, strict=True)
        )
    assert isinstance(opening.pool, ThreadPoolExecutor)


def test_a_reference_is_that_of_its_picture(files: list[str], tmp_path: Path) -> None:
    prompt, answers = np.array([1, 2, 3], np.int32), (np.array([4], np.int32),)
    one, other, none = (Unit(prompt, answers, images=images) for images in ((files[0],), (files[1],), ()))
    assert len({unit.answer_keys(None)[0] for unit in (one, other, none)}) == 3
    copied = tmp_path / "copy.png"
    copied.write_bytes(Path(files[0]).read_bytes())
    assert Unit(prompt, answers, images=(str(copied),)).answer_keys(None) == one.answer_keys(None)
