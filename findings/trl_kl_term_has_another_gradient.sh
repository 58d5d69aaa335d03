#!/usr/bin/env bash
# trl 1.16.0, transformers 5.23.0, torch 2.13.0, datasets 5.2.0, accelerate 1.15.0
#
# Behaviour: GRPOTrainer with beta above 0 adds beta times the usual estimate of the distance to the reference (k3, exp(d) - d - 1), and by
# default (use_bias_correction_kl) times the ratio of new to old probability. That ratio is 1 in the step that follows its own rollout, so the
# logged loss and kl are those of the plain formula; its gradient is not zero, so the gradient of every weight is another one.
# Seen: two runs that differ in this switch alone log the same loss and kl in the second step, and gradient norms that differ.
# Why a good guess is wrong: 'a factor of 1 changes nothing', and a trainer of one's own that is held to this one by its losses passes while
# it learns something else. Only a comparison of gradients shows it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.23.0 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0
cd "$work"
HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false "$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import GRPOConfig, GRPOTrainer

words = {w: i for i, w in enumerate(["<pad>", "<end>", "<unk>", *[f"w{n}" for n in range(29)]])}
raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
raw.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", padding_side="left"
)
rows = Dataset.from_list([{"prompt": f"w{n} w{n + 1}"} for n in range(8)])


def steps(correction):
    set_seed(0)
    shape = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(**shape, pad_token_id=0, eos_token_id=1, bos_token_id=None))
    model.save_pretrained("model")
    args = GRPOConfig(
        output_dir="out", use_cpu=True, bf16=False, beta=1.0, learning_rate=0.05, lr_scheduler_type="constant", max_grad_norm=1e9,
        per_device_train_batch_size=8, num_generations=4, max_completion_length=6, max_steps=2, logging_steps=1, seed=1,
        gradient_checkpointing=False, report_to=[], save_strategy="no", use_bias_correction_kl=correction, disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model="model", reward_funcs=lambda completions, **_: [float(len(set(text.split()))) for text in completions],
        args=args, train_dataset=rows, processing_class=tokenizer,
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


usual, plain = steps(True), steps(False)
for name in ("loss", "kl", "reward", "grad_norm"):
    print(name, [entry[name] for entry in usual], [entry[name] for entry in plain])
assert usual[0]["grad_norm"] == plain[0]["grad_norm"], "the first step has no distance yet"
assert usual[1]["kl"] == plain[1]["kl"] > 0 and usual[1]["reward"] == plain[1]["reward"]
assert abs(usual[1]["loss"] - plain[1]["loss"]) < 1e-6
assert abs(usual[1]["grad_norm"] - plain[1]["grad_norm"]) > 1e-3 * plain[1]["grad_norm"]
print("the same loss and kl, and another gradient")
PYTHON
