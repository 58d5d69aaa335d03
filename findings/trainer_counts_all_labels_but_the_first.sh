#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, accelerate 1.15.0
#
# Behaviour: the `num_items_in_batch` that Trainer hands to a `compute_loss_func` is counted over labels[..., 1:] where the model is one that
# generates, whatever the function makes of the labels. That suits its own shifted loss. Labels with one number an example have no other
# axis than that of the examples, so the first EXAMPLE of each micro-batch is not counted; of labels that are shifted already the first token.
# Seen: 6 examples with a label each, in micro-batches of 2, accumulated 3: counted 3, and the loss that is logged is twice the mean; in
# one micro-batch of 6: counted 5. With a model that classifies the same labels are counted as 6.
# Why a good guess is wrong: 'the number of items in the batch' is what the name says and the pattern of every example (sum / num_items); the
# loss falls all the same, only that its size, and with it the gradient, depends on how a step is cut into micro-batches. Nothing warns.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, Trainer, TrainingArguments, set_seed

SHAPE = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0,
             bos_token_id=None, eos_token_id=1)
ROWS = [{"input_ids": torch.tensor([2 + n, 9, 4]), "labels": torch.tensor(n % 2)} for n in range(6)]


def step(kind, batch, accumulation):
    """One optimizer step: what was counted, the loss that is logged, and the mean over the six examples."""
    set_seed(0)
    model = kind(LlamaConfig(**SHAPE, num_labels=2))
    counted, single = [], []

    def loss(output, labels, num_items_in_batch=None):
        logits = output.logits if output.logits.dim() == 2 else output.logits[:, -1, 10:12]
        each = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        counted.append(int(num_items_in_batch))
        single.extend(each.tolist())
        return each.sum() / num_items_in_batch

    args = TrainingArguments(
        output_dir="out", use_cpu=True, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=1,
        logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, learning_rate=0.0, remove_unused_columns=False,
    )
    trainer = Trainer(model, args, train_dataset=ROWS, compute_loss_func=loss)
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return counted[0], logged, sum(single) / len(single)


for kind, batch, accumulation, expected in (
    (LlamaForCausalLM, 2, 3, 3),
    (LlamaForCausalLM, 6, 1, 5),
    (LlamaForSequenceClassification, 2, 3, 6),
):
    counted, logged, mean = step(kind, batch, accumulation)
    print(f"{kind.__name__}, {accumulation} micro-batches of {batch}: counted {counted} of 6, logged {logged:.4f}, mean {mean:.4f}")
    assert counted == expected, counted
    assert abs(logged - mean * 6 / expected) < 2e-3, (logged, mean)
PYTHON
