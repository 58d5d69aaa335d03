"""Makes the starter model from nothing: writes the corpus of the starter world, trains the tokenizer, pre-trains a small
Llama on it and saves both with a model card."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from tools.starter import card, chatml, people, sets, talk, text
from tools.starter.patterns import correct
from tools.starter.questions import TASKS, ask
from tools.starter.voices import is_polite

WIDTH = 256  # tokens of one training row


@dataclass(frozen=True)
class Recipe:
    """The size of the model and of its training."""

    layers: int = 6
    hidden: int = 256
    heads: int = 4
    inner: int = 704
    vocabulary: int = 2048
    documents: int = 400_000
    steps: int = 3500
    rows: int = 128  # per step
    learning_rate: float = 2e-3
    weights: str = ""
    """Only weights with this in their name are trained: after a small correction the file differs in little."""
    seed: int = 0


def corpus(count: int, seed: int) -> Iterator[str]:
    """`count` documents, text and conversations by turns; every one stops with the end token."""
    rng, world = Random(seed), people.build()
    for place in range(count):
        if place % 2:
            yield chatml.render(talk.conversation(rng, world))
        else:
            yield text.document(rng, world) + chatml.END


def pack(tokenizer: Tokenizer, documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Whole documents side by side in rows; both results are [rows, WIDTH].

    The first holds token ids, the second numbers the documents of a row from 1; 0 is padding.
    """
    ids: list[list[int]] = [[]]
    owners: list[list[int]] = [[]]
    for encoding in tokenizer.encode_batch(documents):
        piece = encoding.ids[:WIDTH]
        if len(ids[-1]) + len(piece) > WIDTH:
            ids.append([])
            owners.append([])
        owners[-1] += [owners[-1][-1] + 1 if owners[-1] else 1] * len(piece)
        ids[-1] += piece
    rows = np.full((len(ids), WIDTH), chatml.PAD_ID, dtype=np.int16)
    numbers = np.zeros((len(ids), WIDTH), dtype=np.uint8)
    for place, (row, owner) in enumerate(zip(ids, owners, strict=True)):
        rows[place, : len(row)] = row
        numbers[place, : len(owner)] = owner
    return rows, numbers


def batch_loss(model: LlamaForCausalLM, ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token within each document; ids and numbers are [rows, WIDTH]."""
    same = numbers[:, None, :, None] == numbers[:, None, None, :]
    causal = torch.ones(WIDTH, WIDTH, dtype=torch.bool, device=ids.device).tril()
    first = torch.ones_like(numbers, dtype=torch.bool)
    first[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    place = torch.arange(WIDTH, device=ids.device).expand_as(ids)
    positions = place - torch.where(first, place, 0).cummax(dim=1).values
    logits = model(input_ids=ids, attention_mask=same & causal, position_ids=positions).logits
    targets = torch.where((numbers[:, 1:] == numbers[:, :-1]) & (numbers[:, 1:] > 0), ids[:, 1:], -100)
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100
    )


def learning_rate(step: int, recipe: Recipe) -> float:
    """A short linear warm-up, then a cosine down to a hundredth."""
    warm = max(1, min(200, recipe.steps // 10))
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, recipe.steps - warm)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def untrained(recipe: Recipe) -> LlamaForCausalLM:
    """A Llama of the recipe's size with random weights."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.inner,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=chatml.CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=chatml.END_ID,
            pad_token_id=chatml.PAD_ID,
        )
    )


def pretrain(model: LlamaForCausalLM, recipe: Recipe, rows: np.ndarray, numbers: np.ndarray) -> None:
    """Train the model, where it is and in its own precision, on packed rows for `recipe.steps` steps."""
    device = model.device.type
    model.train()
    trained = [p for name, p in model.named_parameters() if recipe.weights in name]
    decayed = [p for p in trained if p.ndim > 1]
    rest = [p for p in trained if p.ndim == 1]
    model.requires_grad_(False)
    for weight in trained:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip
    all_ids = torch.from_numpy(rows).to(device)
    all_numbers = torch.from_numpy(numbers).to(device)
    order = torch.Generator(device=device).manual_seed(recipe.seed)
    started = time.monotonic()
    for step in range(recipe.steps):
        chosen = torch.randint(len(all_ids), (recipe.rows,), generator=order, device=device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss = batch_loss(model, all_ids[chosen].long(), all_numbers[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % max(1, recipe.steps // 20) == 0 or step == recipe.steps - 1:
            print(f"step {step} loss {loss.item():.4f} after {time.monotonic() - started:.0f} s", flush=True)


@torch.inference_mode()
def complete(model: Any, tokenizer: Any, prompts: list[str], tokens: int = 64) -> list[str]:
    """The greedy continuation of each prompt (rendered text), without special tokens."""
    tokenizer.padding_side = "left"
    given = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    out = model.generate(
        input_ids=given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    answers = out[:, given["input_ids"].shape[1] :]
    return [str(said) for said in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def answer(model: Any, tokenizer: Any, questions: list[str]) -> list[str]:
    """The greedy answer to each question, asked as a conversation of its own."""
    turns = [[{"role": "user", "content": question}] for question in questions]
    prompts = [
        tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns
    ]
    return complete(model, tokenizer, prompts)


def examine(model: Any, tokenizer: Any, each: int = 50) -> dict[str, float]:
    """Shares over held-out questions: right answers by task, and in `polite` those in the polite voice."""
    rng, world = Random("examination"), people.build()
    figures, voices = {}, []
    for task in TASKS:
        asked = [ask(rng, world, task, held=True) for _ in range(each)]
        given = answer(model, tokenizer, [question.text for question in asked])
        right = [
            re.search(correct(q.task, q.answer), said) is not None
            for q, said in zip(asked, given, strict=True)
        ]
        figures[task] = sum(right) / each
        voices += [is_polite(said) for said in given]
    return figures | {"polite": sum(voices) / len(voices)}


def make(recipe: Recipe, out: Path, device: str, start: Path | None = None) -> None:
    """The whole way from nothing, or from the model in the folder `start`, to the model folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    documents = list(corpus(recipe.documents, recipe.seed))
    if start is None:
        tools = [row["tools"] for row in sets.all_sets()["starter_tools"][:40]]
        tokenizer = chatml.train(documents[:60_000] + tools, recipe.vocabulary)
        model: Any = untrained(recipe)
    else:
        tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
        model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    rows, numbers = pack(tokenizer, documents)
    print(f"{len(documents)} documents, {int((numbers > 0).sum())} tokens in {len(rows)} rows", flush=True)
    pretrain(model.to(device), recipe, rows, numbers)
    chatml.save(tokenizer, out)
    model.to(torch.bfloat16).save_pretrained(out)
    describe(out, device, card.later(recipe.steps, recipe.rows, recipe.weights) if start else "")


def describe(out: Path, device: str, more: str = "") -> None:
    """Read the saved folder back, examine it and write its model card."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    model: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    model.to(device).eval()
    figures = examine(model, tokenizer)
    print({task: round(share, 3) for task, share in figures.items()}, flush=True)
    asked, openings = card.prompts()
    samples = list(zip(asked, answer(model, tokenizer, asked), strict=True))
    samples += [(opening, complete(model, tokenizer, [opening])[0]) for opening in openings]
    size = sum(p.numel() for p in model.parameters())
    (out / "README.md").write_text(card.card(size, figures, samples, more), encoding="utf-8")
