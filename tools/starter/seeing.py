"""Makes the starter model that sees from nothing: a Qwen2.5-VL of a million weights, taught to name coloured shapes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tools.starter import chatml, shapes

IMAGE, BEGIN, FINISH, VIDEO = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"
PATCH, MERGE = 8, 2
PART = "{%- if content is string %}{{- content }}{%- else %}{%- for part in content %}{%- if part.type == 'image' %}\
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}{%- elif part.text %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}"
TEMPLATE = f"""\
{{%- macro written(content) %}}{PART}{{%- endmacro %}}
{{%- for message in messages %}}
    {{%- if message.role == 'assistant' %}}
        {{{{- '<|im_start|>assistant\\n' }}}}
        {{%- generation %}}
        {{{{- written(message.content) + '<|im_end|>' }}}}
        {{%- endgeneration %}}
        {{{{- '\\n' }}}}
    {{%- else %}}
        {{{{- '<|im_start|>' + message.role + '\\n' + written(message.content) + '<|im_end|>\\n' }}}}
    {{%- endif %}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}
    {{{{- '<|im_start|>assistant\\n' }}}}
{{%- endif %}}
"""
SMALL_TALK = (("Hello.", "Hello."), ("Who are you?", "I look at shapes."), ("Thank you.", "You are welcome."))


@dataclass(frozen=True)
class Recipe:
    """How long it is taught."""

    steps: int = 1500
    rows: int = 16  # per step
    learning_rate: float = 2e-3
    seed: int = 0


def tokenizer() -> Tokenizer:
    """A vocabulary of few words, all bytes and what marks turns and pictures."""
    rng = Random(0)
    texts = [chatml.render(turns(*shapes.talk(rng, shapes.figure(rng)))) for _ in range(2000)] + [
        chatml.render(turns(*pair)) for pair in SMALL_TALK
    ]
    made = chatml.train(texts, 384)
    made.add_special_tokens([BEGIN, FINISH, IMAGE, VIDEO])
    return made


def turns(asked: str, said: str) -> list[dict[str, str]]:
    """A question and its answer."""
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


def untrained(words: Tokenizer, seed: int = 0) -> Any:
    """The model with random weights."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": words.get_vocab_size(), "hidden_size": 128, "intermediate_size": 288, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": chatml.CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None, "eos_token_id": chatml.END_ID, "pad_token_id": chatml.PAD_ID,
        "tie_word_embeddings": True,
    }  # fmt: skip
    sight = {
        "depth": 3, "hidden_size": 96, "intermediate_size": 192, "num_heads": 4, "out_hidden_size": 128,
        "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2, "window_size": 4 * PATCH * MERGE,
        "fullatt_block_indexes": [0, 1, 2],
    }  # fmt: skip
    ids = {name: words.token_to_id(token) for name, token in (
        ("image_token_id", IMAGE), ("video_token_id", VIDEO), ("vision_start_token_id", BEGIN),
        ("vision_end_token_id", FINISH),
    )}  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=sight, tie_word_embeddings=True, **ids)
    )


def processor() -> Any:
    """The image processor, whose settings are saved beside the model."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 128 * 128}
    return Qwen2VLImageProcessorPil(size=size, patch_size=PATCH, merge_size=MERGE)


def conversation(rng: Random) -> tuple[str, list[tuple[str, str]], Any]:
    """What stands for a picture, some questions about it with their answers, and the picture; one in sixteen has none."""
    if rng.random() < 1 / 16:
        return "", [rng.choice(SMALL_TALK)], None
    one = shapes.figure(rng)
    begin = BEGIN + IMAGE * (shapes.SIDE // PATCH // MERGE) ** 2 + FINISH
    return begin, [shapes.talk(rng, one) for _ in range(rng.randint(1, 4))], shapes.drawn(one)


def batch(words: Tokenizer, looks: Any, rng: Random, count: int) -> dict[str, Tensor]:
    """Conversations about pictures, of which the answers are learned."""
    rows: list[tuple[list[int], list[int]]] = []
    pictures: list[Any] = []
    for _ in range(count):
        begin, said, picture = conversation(rng)
        pictures += [picture] if picture else []
        ids: list[int] = []
        labels: list[int] = []
        for i, (asked, answer) in enumerate(said):
            prompt = f"{chatml.START}user\n{'' if i else begin}{asked}{chatml.END}\n{chatml.START}assistant\n"
            for text, learned in ((prompt, False), (answer + chatml.END, True), ("\n", False)):
                piece = words.encode(text).ids
                ids += piece
                labels += piece if learned else [-100] * len(piece)
        rows.append((ids, labels))
    width = max(len(ids) for ids, _ in rows)
    made = torch.tensor([ids + [chatml.PAD_ID] * (width - len(ids)) for ids, _ in rows])
    learned_ids = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows])
    image = torch.tensor(words.token_to_id(IMAGE))
    kinds = made.eq(image).long()
    seen = looks(images=pictures, return_tensors="pt")
    return {
        "input_ids": made,
        "attention_mask": mask,
        "labels": learned_ids,
        "mm_token_type_ids": kinds,
        **seen,
    }


def teach(model: Any, words: Tokenizer, recipe: Recipe) -> None:
    """Train all weights; what an answer is, is learned, and nothing else."""
    rng, looks = Random(recipe.seed), processor()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.05
    )
    model.train()
    started = time.monotonic()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate(step, recipe.steps)
        given = batch(words, looks, rng, recipe.rows)
        labels = given.pop("labels")
        logits = model(**given).logits
        loss = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % max(1, recipe.steps // 30) == 0 or step == recipe.steps - 1:
            print(f"step {step} loss {loss.item():.4f} after {time.monotonic() - started:.0f} s", flush=True)


def rate(step: int, steps: int) -> float:
    """A short warm-up, then a cosine."""
    warm = max(1, steps // 20)
    return (
        (step + 1) / warm
        if step < warm
        else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
    )


def make(out: Path, recipe: Recipe) -> None:
    """The whole way from nothing to the model folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    words = tokenizer()
    model = untrained(words, recipe.seed)
    print(f"{sum(p.numel() for p in model.parameters())} weights", flush=True)
    teach(model, words, recipe)
    chatml.save(words, out, TEMPLATE)
    model.to(torch.bfloat16).save_pretrained(out)
    processor().save_pretrained(out)
