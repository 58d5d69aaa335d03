"""Folders of models that see, without weights: tokenizer, chat template and processor settings as the real ones have them.

folder = seeing.folder(tmp_path / "qwen", "qwen2_5_vl")     # what the data side reads of a model
seeing.processor(folder, "qwen2_5_vl")                      # transformers' own processor of it
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny
import trl
from PIL import Image

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
"""Chat templates as models ship them; the processors' own come with nothing else that is installed."""
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3", "smolvlm")
_QWEN = {
    "image_token": "<|image_pad|>",
    "boi": "<|vision_start|>",
    "eoi": "<|vision_end|>",
    "video": "<|video_pad|>",
}
_GEMMA = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
_SQUARES = {f"{r}{c}": f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)}
_IDEFICS = {
    "image_token": "<image>", "fake": "<fake_token_around_image>", "global": "<global-img>", "video": "<video>", **_SQUARES,
}  # fmt: skip
TOKENS = {"qwen": _QWEN, "gemma": _GEMMA, "idefics": _IDEFICS}
SETTINGS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2},
    "qwen2_5_vl": {
        "size": {"shortest_edge": 3136, "longest_edge": 12845056},
        "patch_size": 14,
        "merge_size": 2,
    },
    "qwen3_vl": {
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "patch_size": 16,
        "merge_size": 2,
    },
    "gemma3": {"size": {"height": 896, "width": 896}, "image_seq_length": 256},
    "idefics3": {
        "size": {"longest_edge": 1456},
        "max_image_size": {"longest_edge": 364},
        "do_image_splitting": True,
    },
    "smolvlm": {
        "size": {"longest_edge": 2048},
        "max_image_size": {"longest_edge": 512},
        "do_image_splitting": True,
    },
}
"""preprocessor_config.json of Qwen2-VL-2B, Qwen2.5-VL-3B, Qwen3-VL-2B, gemma-3-4b-it, Idefics3-8B and SmolVLM-500M."""
LENGTHS = {
    "idefics3": {"image_seq_len": 169},
    "smolvlm": {"image_seq_len": 64},
    "gemma3": {"image_seq_length": 256},
}
MORE = {"qwen": ["<|im_start|>", "<|im_end|>"], "gemma": ["<start_of_turn>", "<end_of_turn>"],
        "idefics": ["<|im_start|>", "<end_of_utterance>", "<|begin_of_text|>"]}  # fmt: skip


def group(family: str) -> str:
    return "qwen" if family.startswith("qwen") else "gemma" if family == "gemma3" else "idefics"


def template(family: str) -> str:
    """What TRL calls a family's chat template."""
    return "qwen2_5_vl" if family == "qwen2_vl" else family


def folder(at: Path, family: str) -> Path:
    """Write what the data side reads of a model; returns the folder."""
    from transformers import AutoTokenizer

    tiny.tokenizer(at)
    words = AutoTokenizer.from_pretrained(at)
    words.add_special_tokens(
        {"extra_special_tokens": [*TOKENS[group(family)].values(), *MORE[group(family)]]}
    )
    words.chat_template = (TEMPLATES / f"{template(family)}.jinja").read_text(encoding="utf-8")
    words.save_pretrained(at)
    _write(at / "config.json", {"model_type": family, "vision_config": {}})
    _write(at / "preprocessor_config.json", SETTINGS[family])
    _write(at / "processor_config.json", LENGTHS.get(family, {}))
    return at


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def image_processor(family: str) -> Any:
    """transformers' own image processor with the real settings, over Pillow."""
    if group(family) == "qwen":
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil as Made,
        )
    elif family == "gemma3":
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil as Made
    elif family == "idefics3":
        from transformers.models.idefics3.image_processing_pil_idefics3 import (
            Idefics3ImageProcessorPil as Made,
        )
    else:
        from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil as Made
    return Made(**SETTINGS[family])


def processor(at: Path, family: str) -> Any:
    """transformers' own processor of a folder, without the part for videos, which wants torchvision."""
    import transformers
    from transformers import AutoTokenizer
    from transformers.models.smolvlm import processing_smolvlm

    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "gemma3": "Gemma3"}
    names |= {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}
    processing_smolvlm.num2words = object()  # says in words how many frames a video has: never asked here
    base = getattr(transformers, f"{names[family]}Processor")

    class Processor(base):  # type: ignore[misc,valid-type]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
            return None

    words = AutoTokenizer.from_pretrained(at)
    for name, token in TOKENS[group(family)].items():
        if name.endswith("token"):
            setattr(words, name, token)
            setattr(words, f"{name}_id", words.convert_tokens_to_ids(token))
    more: dict[str, Any] = dict(LENGTHS.get(family, {}))
    if family not in ("gemma3", "idefics3"):
        more["video_processor"] = SimpleNamespace(num_frames=1, fps=1, size={}, model_input_names=[])
    return Processor(image_processor(family), words, chat_template=words.chat_template, **more)


def picture(path: Path, width: int, height: int, seed: int = 0, **how: Any) -> Path:
    """A picture of a few colours, in the format of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    small = Image.new("RGB", (3, 3))
    small.putdata([tuple(chance.randrange(256) for _ in range(3)) for _ in range(9)])
    small.resize((width, height), Image.Resampling.NEAREST).save(path, **how)
    return path


def chats(at: Path, count: int, seed: int = 0, longest: int = 1200) -> list[dict[str, Any]]:
    """Talks with none to two pictures each, of every shape; their pictures are written under `at`."""
    chance = random.Random(seed)
    rows = []
    for i, (asked, answer) in enumerate(zip(tiny.sentences(count, 1), tiny.sentences(count, 2), strict=True)):
        names = []
        for j in range(chance.choice((0, 1, 1, 1, 2))):
            name = f"shown/{i}-{j}.{chance.choice(('png', 'jpg', 'webp'))}"
            long = chance.choice((1, 1, 6))
            picture(at / name, max(1, chance.randint(8, longest) // long), chance.randint(8, longest), i)
            names.append(name)
        messages = [{"role": "user", "content": "<image>" * len(names) + chance.choice(("", "\n")) + asked}]
        messages.append({"role": "assistant", "content": answer})
        if chance.random() < 0.4:
            name = f"shown/{i}-then.png"
            picture(at / name, chance.randint(8, longest), chance.randint(8, longest), i)
            names.append(name)
            messages += [
                {"role": "user", "content": "and <image> then?"},
                {"role": "assistant", "content": asked},
            ]
        if chance.random() < 0.3:
            messages.insert(0, {"role": "system", "content": "say what you see"})
        rows.append({"messages": messages, "images": names})
    return rows


SHAREGPT = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {
        "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system",
    },
}  # fmt: skip
"""As LLaMA-Factory's mllm_demo."""


def catalog(at: Path, **sets: Any) -> Path:
    """Write sets, each a list of records or (records, entry), a record a line; returns the folder of their catalog."""
    at.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, given in sets.items():
        records, entry = given if isinstance(given, tuple) else (given, SHAREGPT)
        (at / f"{name}.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records), encoding="utf-8"
        )
        entries[name] = {"file_name": f"{name}.jsonl", **entry}
    _write(at / "dataset_info.json", entries)
    return at
