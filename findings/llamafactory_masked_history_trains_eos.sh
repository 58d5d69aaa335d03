#!/usr/bin/env bash
# llamafactory 0.9.5
#
# Behaviour: with mask_history and a template whose answers end where the next turn begins (efficient_eos: glm4 and its kin), the end of
# text is a label at the first token of each earlier turn, the very first token of the chat included.
# Seen: two turns of template glm4: labels are </s> at [gMASK], nothing else up to the last answer. Without mask_history the label stands at
# the first token of the second question, where it belongs.
# Why a good guess is wrong: 'mask_history learns the last answer alone'. Every row also teaches the model to end before it has begun: the
# turns are walked backwards, and the rule for 'not the first' then hits the first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check llamafactory==0.9.5
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
from llamafactory.hparams import DataArguments
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

words = "[gMASK] <sop> <|user|> <|assistant|> <|observation|> </s> <unk> one two three four".split()
backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
backend.add_special_tokens(words[:7])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", pad_token="</s>")
asked = [{"role": r, "content": c} for r, c in (("user", "one"), ("assistant", "two"), ("user", "three"))]


def labelled(mask_history):
    data = DataArguments(template="glm4", mask_history=mask_history, cutoff_len=100)
    template = get_template_and_fix_tokenizer(tokenizer, data)
    processor = SupervisedDatasetProcessor(template=template, tokenizer=tokenizer, processor=None, data_args=data)
    answer = [{"role": "assistant", "content": "four"}]
    ids, labels = processor._encode_data_example(
        prompt=asked, response=answer, system="", tools="", images=[], videos=[], audios=[]
    )
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return [(t, tokenizer.convert_ids_to_tokens(label)) for t, label in zip(tokens, labels) if label >= 0]


assert labelled(False) == [("two", "two"), ("<|user|>", "</s>"), ("four", "four"), ("</s>", "</s>")], labelled(False)
assert labelled(True) == [("[gMASK]", "</s>"), ("four", "four"), ("</s>", "</s>")], labelled(True)
print("the first token of the chat is taught to be the end of the text")
PYTHON
