"""Fine-tuning on pictures: the packed engine beside TRL on the same rows, one line of JSON a case.

    python tests/bench/pictures.py                     # Qwen2.5-VL-3B's shape on a GPU, a tiny one on a CPU
    python tests/bench/pictures.py --cases trl8,packed8

Random weights, noisy pictures, LoRA r 8 on all linears of the language part, the tower frozen. Rates are of real tokens,
pictures' among them, never padding. TRL reads pictures in processes of its own and keeps its activations; `packed` is
told of the first pass over the pictures, in which each is looked at, and of the later ones.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_vision

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-3b": {
        "text": {
            "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 11_008, "num_hidden_layers": 36,
            "num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "tower": {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
            "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "side": 448,
    },
    "tiny": {
        "text": {
            "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        },
        "tower": {
            "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 128,
            "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1],
        },
        "side": 112,
    },
}  # fmt: skip
CASES = {"trl8": ("trl", 8), "packed8": ("packed", 8), "trl32": ("trl", 32), "packed32": ("packed", 32)}
LANGUAGE = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class Bench:
    """The rows of a shape and what runs them."""

    def __init__(self, shape: str, pictures: int) -> None:
        import torch

        self.shape, self.cuda = SHAPES[shape], torch.cuda.is_available()
        self.folder = Path(tempfile.mkdtemp())
        tiny_vision.model(self.folder, "qwen2_5_vl")
        self.processor = tiny_vision.whole_processor(self.folder, "qwen2_5_vl")
        self.processor.image_processor.size = {"shortest_edge": 784, "longest_edge": 1 << 22}
        self.processor.image_processor.save_pretrained(self.folder)
        self.files = tiny_vision.pictures(self.folder / "pictures", pictures, (self.shape["side"],))
        chance = random.Random(0)
        words = ["red", "blue", "two", "cats", "the", "sea", "one", "dog", "old", "near", "big", "warm"]
        self.examples = [
            {
                "prompt": [{"role": "user", "content": " ".join(chance.choices(words, k=20))}],
                "completion": [
                    {
                        "role": "assistant",
                        "content": " ".join(chance.choices(words, k=chance.randint(10, 90))),
                    }
                ],
                "images": [path],
            }
            for path in self.files
        ]

    def model(self) -> Any:
        """The model with its adapter, frozen in bfloat16 on a GPU."""
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoConfig, AutoModelForImageTextToText

        tokens = self.processor.tokenizer.convert_tokens_to_ids(tiny_vision.TOKENS["qwen"])
        names = ("image_token_id", "vision_start_token_id", "vision_end_token_id", "video_token_id")
        config = AutoConfig.for_model(
            "qwen2_5_vl", text_config=self.shape["text"], vision_config=self.shape["tower"],
            tie_word_embeddings=True, **dict(zip(names, tokens, strict=True)),
        )  # fmt: skip
        config._name_or_path = str(self.folder)
        torch.manual_seed(0)
        with torch.device("cuda" if self.cuda else "cpu"):
            model = AutoModelForImageTextToText.from_config(
                config, dtype=torch.bfloat16 if self.cuda else torch.float32
            )
        torch.manual_seed(42)
        return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=LANGUAGE))

    def rows(self) -> list[dict[str, Any]]:
        """The same examples as ids, by TRL's own collator."""
        from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

        collate = DataCollatorForVisionLanguageModeling(self.processor, completion_only_loss=True)
        found = []
        for example in self.examples:
            batch = collate([dict(example, images=self.opened(example))])
            kept = batch["attention_mask"][0].bool()
            ids, labels = (batch[name][0][kept].tolist() for name in ("input_ids", "labels"))
            found.append({"input_ids": ids, "labels": labels, "images": tuple(example["images"])})
        return found

    def opened(self, example: dict[str, Any]) -> list[Any]:
        from PIL import Image

        return [Image.open(path).convert("RGB") for path in example["images"]]

    def common(self, batch: int, steps: int) -> dict[str, Any]:
        return {
            "output_dir": tempfile.mkdtemp(), "learning_rate": 5e-5, "max_steps": steps, "save_strategy": "no",
            "per_device_train_batch_size": batch, "logging_steps": 1, "report_to": "none", "bf16": self.cuda,
            "use_cpu": not self.cuda, "disable_tqdm": True, "seed": 42, "gradient_checkpointing": False,
        }  # fmt: skip

    def trl(self, batch: int, clock: Any, steps: int) -> None:
        from datasets import Dataset, Features, Image, List, Value
        from trl import SFTConfig, SFTTrainer

        said = List({"role": Value("string"), "content": Value("string")})
        features = Features({"prompt": said, "completion": said, "images": List(Image())})
        SFTTrainer(
            model=self.model(),
            args=SFTConfig(
                max_length=None, dataloader_num_workers=4 if self.cuda else 0, **self.common(batch, steps)
            ),
            train_dataset=Dataset.from_list(self.examples, features=features),
            processing_class=self.processor,
            callbacks=[clock],
        ).train()

    def packed(self, batch: int, clock: Any, steps: int) -> None:
        from transformers import TrainingArguments

        from tuner.config.config import make
        from tuner.engine.packed.objective import TokenObjective
        from tuner.engine.packed.trainer import EngineSettings, PackedTrainer
        from tuner.models import vision

        vision.image_processor = lambda folder: (
            self.processor.image_processor
        )  # older releases find none by its folder
        model = self.model()
        config = make(
            {"stage": "sft", "model_name_or_path": str(self.folder), "dataset": "x", "do_train": True}
        )
        PackedTrainer(
            model,
            TrainingArguments(**self.common(batch, steps)),
            self.rows(),
            engine=EngineSettings(sight=vision.sight_of(model, self.folder, config)),
            callbacks=[clock],
            objective=lambda device: TokenObjective(),
        ).train()

    def run(self, name: str) -> dict[str, Any]:
        """A case's line."""
        import torch
        from transformers import TrainerCallback

        engine, batch = CASES[name]
        a_pass = len(self.files) // batch
        steps = 3 * a_pass if engine == "packed" else min(a_pass, 14)
        times: dict[int, float] = {}
        losses: list[float] = []
        cuda = self.cuda

        class Clock(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                times[0] = time.time()

            def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
                if cuda:
                    torch.cuda.synchronize()
                times[state.global_step] = time.time()

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **__: Any) -> None:
                if logs and "loss" in logs:
                    losses.append(round(logs["loss"], 4))

        getattr(self, engine)(batch, Clock(), steps)
        tokens = sum(len(row["input_ids"]) for row in self.rows()) / len(self.files) * batch
        parts = (
            {"first_pass": (4, a_pass), "later": (2 * a_pass, steps)}
            if engine == "packed"
            else {"rate": (4, steps)}
        )
        rates = {part: round(tokens * (b - a) / (times[b] - times[a])) for part, (a, b) in parts.items()}
        made = {"case": name, "tokens_per_s": rates, "losses": losses[:2], "tokens_a_step": round(tokens)}
        if cuda:
            made |= {
                "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
                "device": torch.cuda.get_device_name(),
            }
            torch.cuda.empty_cache()
        return made


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--model", choices=SHAPES, default="qwen2.5-vl-3b" if cuda else "tiny")
    parser.add_argument("--pictures", type=int, default=256 if cuda else 48)
    parser.add_argument("--cases", default="trl8,packed8,trl32,packed32" if cuda else "trl8,packed8")
    options = parser.parse_args()
    bench = Bench(options.model, options.pictures)
    for name in options.cases.split(","):
        print(json.dumps(bench.run(name)), flush=True)


if __name__ == "__main__":
    main()
