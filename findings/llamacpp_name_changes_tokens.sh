#!/usr/bin/env bash
# xllamacpp 2026.10.11549 (llama.cpp), gguf 0.19.0
#
# Behaviour: what a GGUF file is called decides how it is tokenized. Where general.name holds "phi-3" or "phi3", in any case, llama.cpp drops the blank
# space after every marker, whatever the file's own tokens say.
# Seen: two files, equal but for general.name. "<|user|> a<|end|> b" is [265, 262, 267, 263] under the name my-model and [265, 260, 267, 261] under
# my-phi-3-model: the word-begin forms of a and b are gone.
# Why a good guess is wrong: a name is for people. A fine-tune of another model that is called after Phi-3 (distilled from it, compared with it) reads its
# prompts otherwise than it was taught, and a fine-tune of Phi-3 that is called after its purpose does, too; both load and answer without a word.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check gguf==0.19.0 xllamacpp==2026.10.11549
cd "$work"
cat > read.py <<'PYTHON'
import json
import sys
import urllib.request

import gguf
import numpy as np
import xllamacpp

MARKS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"]
PIECES = ["\u2581", "a", "b", "\u2581a", "\u2581b"]
TOKENS = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *PIECES, *MARKS]
KINDS = [2, 3, 3, *[6] * 256, *[1] * len(PIECES), *[3] * len(MARKS)]


def write(name):
    writer = gguf.GGUFWriter("model.gguf", "llama")
    writer.add_name(name)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types(KINDS)
    writer.add_token_scores([-float(i) for i in range(len(TOKENS))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    chance = np.random.default_rng(0)

    def put(name, *shape):
        writer.add_tensor(name, chance.normal(0, 0.1, shape).astype(np.float32))

    for name in ("token_embd", "output"):
        put(f"{name}.weight", len(TOKENS), 32)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        put(f"{name}.weight", 32)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        put(f"blk.0.{part}.weight", 32, 32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tokens(text):
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = "model.gguf", 64, False
    server = xllamacpp.Server(params)
    body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
    request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))["tokens"]


write(sys.argv[1])
print(json.dumps(tokens("<|user|> a<|end|> b")))
PYTHON
plain=$("$work/venv/bin/python" read.py my-model 2> log | tail -1)
named=$("$work/venv/bin/python" read.py my-phi-3-model 2> log | tail -1)
test "$plain" = "[265, 262, 267, 263]" || { echo "changed: $plain"; cat log; exit 1; }
test "$named" = "[265, 260, 267, 261]" || { echo "changed: $named"; cat log; exit 1; }
echo "one file, two names: $plain and $named"
