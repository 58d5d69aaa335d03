#!/usr/bin/env bash
# tokenizers 0.23.3, transformers 5.23.0
#
# Behaviour: split_special_tokens=True (encode_special_tokens in tokenizers) reads only tokens added with special=True as letters; tokens
# added without it stay single tokens.
# Seen: </s> becomes < / s >, <think>, added without special, stays <think>.
# Why a good guess is wrong: 'with split_special_tokens no marker in a data set can become a token'. Qwen3 adds <think>, </think>,
# <tool_call> and <tool_response> without special: data can still write them, whatever the switch says.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check tokenizers==0.23.3 transformers==5.23.0
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

letters = ["<unk>", *dict.fromkeys("ab<>/sthink")]
tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(letters)}, [], unk_token="<unk>"))
tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
assert fast("a</s>b").tokens() == ["a", "</s>", "b"]
assert fast("a</s>b", split_special_tokens=True).tokens() == ["a", "<", "/", "s", ">", "b"]
assert fast("a<think>b", split_special_tokens=True).tokens() == ["a", "<think>", "b"]
print("added tokens that are not special stay tokens")
PYTHON
