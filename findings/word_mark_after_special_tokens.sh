#!/usr/bin/env bash
# tokenizers 0.23.3
#
# Behaviour: an added token cuts a text, and a tokenizer made from sentencepiece (a Prepend normalizer, or Metaspace with prepend_scheme
# "always": Llama 2, TinyLlama, Mistral 7B, Zephyr) puts its word mark before every part behind one; with prepend_scheme "first"
# (newer conversions) only before the first part of the whole text.
# Seen: a</s>b is _a </s> _b with the first two and _a </s> b with the third (_ for the word mark).
# Why a good guess is wrong: 'the word mark belongs to the begin of a text'. A program that tokenises a chat in parts and takes the mark
# off all but the first gets ids that no text has in the middle of a template (</s> then a line break), and the same template line is
# tokenised in two ways within one row.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check tokenizers==0.23.3
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

MARK = "\u2581"


def made(normalizer=None, pre_tokenizer=None):
    vocabulary = {t: i for i, t in enumerate(["<unk>", MARK, "a", "b", MARK + "a", MARK + "b"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(MARK, "a"), (MARK, "b")], unk_token="<unk>"))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return tokenizer.encode("a</s>b").tokens


everywhere = [MARK + "a", "</s>", MARK + "b"]
assert made(normalizer=normalizers.Prepend(MARK)) == everywhere
assert made(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always")) == everywhere
assert made(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first")) == [MARK + "a", "</s>", "b"]
print("the word mark comes back behind every added token, unless the scheme is first")
PYTHON
