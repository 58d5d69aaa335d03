#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0
#
# Behaviour: Qwen2.5-VL that is given pixel_values and image_grid_thw but no mm_token_type_ids computes all the same, with the positions of
# plain text for a picture's tokens, instead of theirs in height and width. Qwen2-VL and Qwen3-VL, which share the code, raise a ValueError
# that says what is missing.
# Seen: with a random model the logits differ by several units from those with the types; the two siblings refuse.
# Why a good guess is wrong: in transformers 4 ids, pixels and grid were all that a forward took, and every collator of that time makes just
# these. The shapes fit, a loss comes out and falls, and what was learnt is wrong for `generate`, whose processor does give the types.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

PICTURE, START, END, VIDEO = 60, 61, 62, 63
TEXT = dict(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 3, 3]),
)
TOWERS = {
    "qwen2_vl": dict(depth=1, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2),
    "qwen2_5_vl": dict(depth=1, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64, patch_size=14,
                       window_size=56, fullatt_block_indexes=[0]),
    "qwen3_vl": dict(depth=1, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64, patch_size=14,
                     deepstack_visual_indexes=[0], num_position_embeddings=16),
}


def model(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, text_config=TEXT, vision_config=TOWERS[kind], image_token_id=PICTURE, vision_start_token_id=START,
        vision_end_token_id=END, video_token_id=VIDEO, tie_word_embeddings=False,
    )
    return AutoModelForImageTextToText.from_config(config).eval()


grid = torch.tensor([[1, 8, 8]])  # 64 patches, of which four are a token
pixels = torch.randn(64, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(1))
ids = torch.tensor([[5, 6, START, *[PICTURE] * 16, END, 7, 8, 9]])
for kind, silent in (("qwen2_vl", False), ("qwen2_5_vl", True), ("qwen3_vl", False)):
    given = dict(input_ids=ids, pixel_values=pixels, image_grid_thw=grid)
    with torch.no_grad():
        right = model(kind)(**given, mm_token_type_ids=(ids == PICTURE).int()).logits
        try:
            apart = float((model(kind)(**given).logits - right).abs().max())
            print(f"{kind}: computed, logits {apart:.2f} apart")
            assert silent and apart > 0.5, apart
        except ValueError as error:
            print(f"{kind}: refused, {str(error)[:70]}...")
            assert not silent
PYTHON
