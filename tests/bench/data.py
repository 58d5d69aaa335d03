"""How fast data is read, tokenised and reported, beside TRL on the same pairs. One line of JSON a case.

    python tests/bench/data.py                 pairs against TRL, report of 1,000 pairs, pages
    python tests/bench/data.py --rows 1000000  also the report of that many generated rows, and its memory

Times are wall-clock seconds of one run each; compare them within a run of this script only. `cpu_s` are processor seconds
over all cores and `load` the machine's load average at the end: above the number of cores, others took part of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from data_world import QWEN, RANKED, catalog, model_folder, pair  # noqa: E402

from tuner.config.config import make  # noqa: E402
from tuner.data.pages import Pages  # noqa: E402
from tuner.data.prepare import prepare, report_of  # noqa: E402
from tuner.data.tokens import load_tokenizer  # noqa: E402

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
    "be",
    "this",
    "have",
    "from",
    "or",
    "had",
    "by",
]


def words(draw: random.Random, least: int, most: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))


def generated(rows: int, least: int = 20, most: int = 120) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        pair(words(draw, least, most), words(draw, least, most) + f" {i}", words(draw, least, most))
        for i in range(rows)
    ]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def say(case: str, **figures: Any) -> None:
    print(
        json.dumps(
            {"case": case, **{k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}}
        ),
        flush=True,
    )


def model(folder: Path) -> Path:
    """A tokenizer folder: the real Qwen vocabulary where it is beside the checkout, the tests' small one elsewhere."""
    if not QWEN.is_dir():
        return model_folder(folder, CHATML)
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((QWEN / name).read_bytes())
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    return folder


def against_trl(folder: Path, pairs: int) -> None:
    """The same pairs through DPOTrainer's own preparation and through ours; both from rows on disk to ids."""
    records = generated(pairs)
    data = catalog(folder / "pairs", set=(RANKED, records))
    tokenizer = load_tokenizer(folder / "model")
    config = make(
        {
            "model_name_or_path": "x",
            "dataset": "set",
            "dataset_dir": str(data),
            "stage": "dpo",
            "cutoff_len": 1024,
        }
    )
    prepare(config.with_values(max_samples=50), tokenizer)
    ours, prepared = timed(lambda: prepare(config, tokenizer))
    theirs = trl_seconds(folder, records) - trl_seconds(folder, records[:20])
    say(
        "tokenise",
        pairs=pairs,
        ours_s=ours,
        trl_s=theirs,
        ratio_to_trl=theirs / ours,
        rows=len(prepared.train),
    )


def trl_seconds(folder: Path, records: list[dict[str, Any]]) -> float:
    """What DPOTrainer needs to be made with these pairs, in this process."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tiny = Qwen2Config(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                       num_key_value_heads=1, intermediate_size=8)  # fmt: skip
    rows = [
        {
            "prompt": [{"role": "user", "content": r["conversations"][0]["value"]}],
            "chosen": [{"role": "assistant", "content": r["chosen"]["value"]}],
            "rejected": [{"role": "assistant", "content": r["rejected"]["value"]}],
        }
        for r in records
    ]
    args = DPOConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
    )
    net, reference, dataset = Qwen2ForCausalLM(tiny), Qwen2ForCausalLM(tiny), Dataset.from_list(rows)
    seconds, _ = timed(
        lambda: DPOTrainer(net, reference, args=args, train_dataset=dataset, processing_class=tokenizer)
    )
    return seconds


def reports(folder: Path, rows: int) -> None:
    tokenizer = load_tokenizer(folder / "model")
    data = catalog(folder / f"report{rows}", set=(RANKED, generated(1000)))
    config = make({"model_name_or_path": "x", "dataset": "set", "dataset_dir": str(data), "stage": "dpo"})
    seconds, found = timed(lambda: report_of(config, tokenizer))
    say("report", rows=found.read, seconds=seconds)
    if rows <= 1000:
        return
    draw = random.Random(0)
    with (data / "set.json").open("w") as file:
        file.write("[")
        for i in range(rows):
            one = pair(words(draw, 4, 15), words(draw, 3, 20) + f" {i}", words(draw, 3, 20))
            file.write((",\n" if i else "\n") + json.dumps(one))
        file.write("\n]\n")
    told: list[float] = []
    begun = time.process_time()
    seconds, found = timed(lambda: report_of(config, tokenizer, lambda share, _: told.append(share)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    say(
        "report",
        rows=found.read,
        seconds=seconds,
        cpu_s=time.process_time() - begun,
        load=os.getloadavg()[0],
        told=len(told),
        peak_mb=peak,
        tokens=found.total_tokens,
    )
    pages(data / "set.json")


def pages(path: Path) -> None:
    first, opened = timed(lambda: Pages(path))
    shown, _ = timed(lambda: opened.page(0, 20))
    counted, rows = timed(opened.count)
    last, _ = timed(lambda: opened.page(rows // 20 - 1, 20))
    say("pages", rows=rows, first_s=first + shown, indexed_s=counted, last_s=last)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TUNER_HOME"] = name
        model(folder / "model")
        reports(folder, given.rows)
        against_trl(folder, given.pairs)


if __name__ == "__main__":
    main()
