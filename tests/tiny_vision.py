"""Tiny random models that take pictures, one of each family, with tokenizer and processor files, and pictures to show them.

folder = tiny_vision.model(tmp_path / "model", "qwen2_5_vl")
paths = tiny_vision.pictures(tmp_path / "pictures", 4)
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny

TOKENS = {
    "qwen": ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"],
    "gemma": ["<image_soft_token>", "<start_of_image>", "<end_of_image>"],
    "idefics": ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>"],
}
"""By the processors' own names, the picture's first."""
MARKERS = {
    "qwen": "<|vision_start|><|image_pad|><|vision_end|>", "gemma": "<start_of_image>", "idefics": "<image>"
}  # fmt: skip
"""What a chat template writes for a picture."""
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}MARKER{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEXT = {
    "vocab_size": 410, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.15, "tie_word_embeddings": False,
}  # fmt: skip
_SIGLIP = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm", "idefics3")


def group(kind: str) -> str:
    """Which names of tokens and which processor a family has."""
    return "qwen" if kind.startswith("qwen") else "gemma" if kind == "gemma3" else "idefics"


def config(kind: str, ids: list[int]) -> Any:
    """The configuration of a tiny model; `ids` are those of `TOKENS`."""
    from transformers import AutoConfig

    image, start, end, *more = ids
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    if kind == "qwen2_vl":
        tower: dict[str, Any] = {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
        }
    else:
        tower = {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
        }
        tower |= {"patch_size": 14}
    if kind == "qwen2_5_vl":
        tower |= {"window_size": 56, "fullatt_block_indexes": [1]}
    if kind == "qwen3_vl":
        tower |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    if kind.startswith("qwen"):
        tokens = {"image_token_id": image, "vision_start_token_id": start, "vision_end_token_id": end}
        tokens["video_token_id"] = more[0]
        text = {**_TEXT, "rope_parameters": rope} | ({"head_dim": 16} if kind == "qwen3_vl" else {})
        return AutoConfig.for_model(
            kind, text_config=text, vision_config=tower, tie_word_embeddings=False, **tokens
        )
    if kind == "gemma3":
        own = {"boi_token_index": start, "eoi_token_index": end}
        return AutoConfig.for_model(
            kind, text_config={**_TEXT, "head_dim": 16}, vision_config={**_SIGLIP, "vision_use_head": False},
            mm_tokens_per_image=4, image_token_index=image, tie_word_embeddings=False, **own,
        )  # fmt: skip
    return AutoConfig.for_model(
        kind, text_config={**_TEXT, "model_type": "llama"}, vision_config=_SIGLIP, scale_factor=2,
        image_token_id=image, tie_word_embeddings=False,
    )  # fmt: skip


def processor(kind: str) -> Any:
    """The image processor of a tiny model, over Pillow."""
    if kind.startswith("qwen"):
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        return Qwen2VLImageProcessorPil(
            size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112}, patch_size=14, merge_size=2
        )
    if kind == "gemma3":
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        return Gemma3ImageProcessorPil(size={"height": 56, "width": 56}, image_seq_length=4)
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    made = SmolVLMImageProcessorPil if kind == "smolvlm" else Idefics3ImageProcessorPil
    return made(size={"longest_edge": 112}, max_image_size={"longest_edge": 56}, do_image_splitting=False)


def model(folder: Path, kind: str = "qwen2_5_vl", seed: int = 0) -> Path:
    """Write a random model with its tokenizer and its image processor's settings; returns the folder."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    tiny.tokenizer(folder)
    words = AutoTokenizer.from_pretrained(folder)
    words.add_special_tokens({"extra_special_tokens": TOKENS[group(kind)]})
    words.chat_template = CHAT.replace("MARKER", MARKERS[group(kind)])
    words.save_pretrained(folder)
    torch.manual_seed(seed)
    shape = config(kind, words.convert_tokens_to_ids(TOKENS[group(kind)]))
    AutoModelForImageTextToText.from_config(shape).save_pretrained(folder)
    processor(kind).save_pretrained(folder)
    if group(kind) == "idefics":
        (folder / "processor_config.json").write_text(json.dumps({"image_seq_len": 4}))
    return folder


def whole_processor(folder: Path, kind: str) -> Any:
    """transformers' own processor of a model, without the part for videos, which wants torchvision."""
    import transformers
    from transformers import AutoTokenizer

    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "gemma3": "Gemma3"}
    kinds = names | {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}
    base = getattr(transformers, f"{kinds[kind]}Processor")

    class Processor(base):  # type: ignore[misc,valid-type]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None

    if kind == "smolvlm":
        from transformers.models.smolvlm import processing_smolvlm

        processing_smolvlm.num2words = object()  # how many frames a video has, in words: not asked here
    words = AutoTokenizer.from_pretrained(folder)
    for name, token in zip(("image_token", "boi_token", "eoi_token"), TOKENS[group(kind)], strict=False):
        setattr(words, name, token)
        setattr(words, f"{name}_id", words.convert_tokens_to_ids(token))
    more = (
        {"image_seq_len": 4}
        if group(kind) == "idefics"
        else {"image_seq_length": 4}
        if kind == "gemma3"
        else {}
    )
    if group(kind) != "gemma" and kind != "idefics3":
        more["video_processor"] = SimpleNamespace(num_frames=1, fps=1, size={}, model_input_names=[])
    return Processor(processor(kind), words, chat_template=words.chat_template, **more)


def pictures(folder: Path, count: int, sides: tuple[int, ...] = (56, 84)) -> list[str]:
    """Paths of noisy pictures of several sizes, the same ones at every call."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for i in range(count):
        chance = random.Random(i)
        small = Image.new("RGB", (4, 4))
        small.putdata([tuple(chance.randrange(256) for _ in range(3)) for _ in range(16)])
        path = folder / f"{i}.png"
        small.resize((chance.choice(sides), chance.choice(sides))).save(path)
        made.append(str(path))
    return made


def data(folder: Path, rows: int = 8) -> Path:
    """Sets of questions about pictures, in which one row in four has none, added to those of `tiny.data`; returns the
    folder."""
    asked, good, bad = (tiny.sentences(rows, seed) for seed in (11, 12, 13))
    files = [Path(path).name for path in pictures(folder / "pictures", rows)]
    shown = [[f"pictures/{file}"] if i % 4 else [] for i, file in enumerate(files)]
    sets: dict[str, list[dict[str, Any]]] = {"seen": [], "seen_pairs": []}
    for i in range(rows):
        human = {"from": "human", "value": "<image>" * len(shown[i]) + asked[i]}
        sets["seen"].append({"conversations": [human, {"from": "gpt", "value": good[i]}], "images": shown[i]})
        pair = {"chosen": {"from": "gpt", "value": good[i]}, "rejected": {"from": "gpt", "value": bad[i]}}
        sets["seen_pairs"].append({"conversations": [human], **pair, "images": shown[i]})
    entries = json.loads((folder / "dataset_info.json").read_text())
    columns = {"messages": "conversations", "images": "images"}
    for name, records in sets.items():
        (folder / f"{name}.json").write_text(json.dumps(records))
        entries[name] = {"file_name": f"{name}.json", "formatting": "sharegpt", "columns": columns}
    entries["seen_pairs"] |= {
        "ranking": True,
        "columns": columns | {"chosen": "chosen", "rejected": "rejected"},
    }
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    return folder
