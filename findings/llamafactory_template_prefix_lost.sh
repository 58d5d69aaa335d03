#!/usr/bin/env bash
# llamafactory 0.9.5
#
# Behaviour: in a template's slots a set stands for the tokenizer's bos or eos token; a set that names another token adds nothing, without
# an error. phi_small begins with {'<|endoftext|>'}.
# Seen: the prefix of phi_small becomes no ids at all, in a tokenizer that has <|endoftext|>.
# Why a good guess is wrong: 'the template says that a chat begins with <|endoftext|>, so it does'. Models are taught without the token that
# their own chat template writes first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check llamafactory==0.9.5
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
from llamafactory.data.template import TEMPLATES
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

backend = Tokenizer(models.WordLevel({"<unk>": 0, "<|endoftext|>": 1, "<|end|>": 2}, unk_token="<unk>"))
backend.add_special_tokens(["<|endoftext|>", "<|end|>"])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", unk_token="<unk>")
template = TEMPLATES["phi_small"]
assert template.format_prefix.apply() == [{"<|endoftext|>"}]
assert template._convert_elements_to_ids(tokenizer, template.format_prefix.apply()) == []
print("the first token of phi_small is lost")
PYTHON
