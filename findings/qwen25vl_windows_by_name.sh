#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0
#
# Behaviour: the part of Qwen2.5-VL (and of Qwen2-VL, Qwen3-VL) that sees runs its windows and pictures one by one, a call of attention for
# each in every layer, unless the letters `flash` stand in the name under which the attention function is registered. Then the same function
# gets all of them in one call, with their borders as `cu_seq_lens_q`.
# Seen: four pictures of 16 by 16 patches in a tower of two layers: 68 calls for a function registered as "windows", 2 for the same function
# registered as "flash_windows". On a GPU with eight pictures of 32 by 32 patches this loop took four fifths of a training step.
# Why a good guess is wrong: `AttentionInterface.register` takes any name, names have no meaning elsewhere, and the borders are at hand in
# either case; a function that could use them is not told of them because of what it is called. "sdpa" is the default without flash-attn.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from transformers import AttentionInterface
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

PICTURES, SIDE, LAYERS = 4, 16, 2
calls = []


def attend(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, **more):
    calls.append((query.shape[2], cu_seq_lens_q))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2), None


for name in ("windows", "flash_windows"):
    AttentionInterface.register(name, attend)
torch.manual_seed(0)
tower = Qwen2_5_VisionTransformerPretrainedModel(
    Qwen2_5_VLVisionConfig(
        depth=LAYERS, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64, patch_size=14, window_size=56,
        fullatt_block_indexes=[LAYERS - 1],
    )
).eval()
pixels, grid = torch.randn(PICTURES * SIDE * SIDE, 3 * 2 * 14 * 14), torch.tensor([[1, SIDE, SIDE]] * PICTURES)
windows = PICTURES * (SIDE // 4) ** 2  # a window is 56 pixels wide, four patches
for name, wanted, told in (("windows", windows + PICTURES, False), ("flash_windows", LAYERS, True)):
    calls.clear()
    tower.config._attn_implementation = name
    with torch.no_grad():
        tower(pixels, grid_thw=grid)
    print(f"{name}: {len(calls)} calls, of {calls[0][0]} patches; borders {'given' if calls[0][1] is not None else 'not given'}")
    assert len(calls) == wanted, (len(calls), wanted)
    assert all((borders is not None) == told for _, borders in calls)
PYTHON
