"""Pictures on the data side: ids as the models' own processors make them, no picture cut, and every bad file named."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import seeing
import tiny
from PIL import Image, ImageOps

from tuner.cli import main as tuner
from tuner.config import config as c
from tuner.config.knobs import ConfigError
from tuner.config.vision import FAMILIES
from tuner.data.catalog import read_catalog
from tuner.data.encode import MASKED
from tuner.data.guess import guess
from tuner.data.mending import mended
from tuner.data.pictures.opening import PictureError, fitted, load, size_of
from tuner.data.pictures.places import Keep, located
from tuner.data.pictures.sizes import BY_MODEL, picture_tokens
from tuner.data.pictures.thumbnails import thumbnail
from tuner.data.prepare import prepare, report_of
from tuner.data.rows import Rows
from tuner.data.template_choice import as_jinja, template_of, to_save
from tuner.data.templates import Written
from tuner.data.tokens import load_tokenizer
from tuner.data.verbs import show
from tuner.plan.facts import data_of
from tuner.plan.preflight import notes, problems


def config(at: Path, model: Path, name: str = "seen", **knobs: Any) -> c.Config:
    base = {"model_name_or_path": str(model), "dataset": name, "dataset_dir": str(at), "stage": "sft"}
    return c.make({**base, "cutoff_len": 100_000, "do_train": True, **knobs})


def prepared(at: Path, model: Path, name: str = "seen", **knobs: Any) -> Any:
    return prepare(config(at, model, name, **knobs), load_tokenizer(model))


def parts(content: str, shown: Iterator[Any] | None = None) -> list[dict[str, Any]]:
    """A content as processors of pictures take it, with its pictures."""
    first, *rest = content.split("<image>")
    made: list[dict[str, Any]] = [{"type": "text", "text": first}] if first else []
    for text in rest:
        made.append({"type": "image", **({"image": next(shown)} if shown else {})})
        made += [{"type": "text", "text": text}] if text else []
    return made


FEW = {"gemma3": 8, "idefics3": 4, "smolvlm": 3}
"""Rows of the fast test where a processor takes long over a picture: it makes millions of pixels of each."""


@pytest.mark.parametrize("family", seeing.FAMILIES)
def test_ids_are_those_of_the_processor(family: str, tmp_path: Path) -> None:
    as_the_processor(family, tmp_path, FEW.get(family, 50))


@pytest.mark.slow
@pytest.mark.parametrize("family", FEW)
def test_ids_are_those_of_the_processor_on_fifty_rows(family: str, tmp_path: Path) -> None:
    as_the_processor(family, tmp_path, 50)


def as_the_processor(family: str, tmp_path: Path, count: int) -> None:
    model = seeing.folder(tmp_path / "model", family)
    rows = seeing.chats(tmp_path, count, longest=350)
    got = prepared(seeing.catalog(tmp_path, seen=rows), model, image_max_pixels=250 * 250).train
    theirs = seeing.processor(model, family)
    teaching = (seeing.TEMPLATES / f"{seeing.template(family)}_training.jinja").read_text(encoding="utf-8")
    assert len(got) == len(rows)
    for row, mine in zip(rows, got, strict=True):
        shown = iter([load(path, 250 * 250, 32 * 32) for path in mine["images"]])
        chat = [{**m, "content": parts(m["content"], shown)} for m in row["messages"]]
        how = {"tokenize": True, "return_dict": True}
        ids = theirs.apply_chat_template(chat, **how)["input_ids"][0]
        assert mine["input_ids"] == ids, row
        # TRL's copy of the template, which marks what answers are.
        marked = theirs.apply_chat_template(chat, teaching, return_assistant_tokens_mask=True, **how)
        assert marked["input_ids"][0] == ids
        learnt = [
            i if answered else MASKED for i, answered in zip(ids, marked["assistant_masks"][0], strict=True)
        ]
        assert mine["labels"] == learnt, row
        assert [Path(p).name for p in mine["images"]] == [Path(p).name for p in row["images"]]


def test_pan_and_scan_writes_what_gemmas_processor_writes(tmp_path: Path) -> None:
    model = seeing.folder(tmp_path / "model", "gemma3")
    seeing.picture(tmp_path / "long.png", 900, 300)
    seeing.picture(tmp_path / "square.png", 300, 300)
    at = seeing.catalog(tmp_path, seen=[asked("<image>one<image>", "long.png", "square.png")])
    row = prepared(at, model, image_do_pan_and_scan=True).train[0]
    theirs = seeing.processor(model, "gemma3")
    chat = [{**m, "content": parts(m["content"])} for m in asked("<image>one<image>")["messages"]]
    text = theirs.apply_chat_template(chat, tokenize=False)
    shown = [load(path) for path in row["images"]]
    assert theirs(text=[text], images=[shown], do_pan_and_scan=True)["input_ids"][0] == row["input_ids"]
    soft = load_tokenizer(model).id_of("<image_soft_token>")
    assert row["input_ids"].count(soft) == 256 * (1 + 3 + 1)


# --- templates by name, splits of long rows, caches ------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeing.folder(tmp_path_factory.mktemp("qwen"), "qwen2_5_vl")


def asked(content: str, *images: Any, answer: str = "red sun") -> dict[str, Any]:
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": said, "images": list(images)}


NAMED = [("qwen2_5_vl", "qwen2_vl"), ("qwen3_vl", "qwen3_vl_nothink"), ("gemma3", "gemma3")]


@pytest.mark.parametrize(("family", "template"), NAMED)
def test_templates_by_name_write_the_same_tokens_for_a_picture(
    family: str, template: str, tmp_path: Path
) -> None:
    model = seeing.folder(tmp_path / "model", family)
    seeing.picture(tmp_path / "a.png", 150, 90)
    at = seeing.catalog(tmp_path, seen=[asked("<image>one<image>", "a.png", "a.png")])
    rows = prepared(at, model, template=template).train
    tokens = picture_tokens(model)
    assert tokens is not None
    count, tokenizer = tokens.count(*size_of(tmp_path / "a.png")), load_tokenizer(model)
    assert rows[0]["input_ids"].count(tokenizer.id_of(tokens.token)) == 2 * count > 0
    text = tokenizer.decode(rows[0]["input_ids"])
    assert text.count(tokens.text(150, 90) + "one" + tokens.text(150, 90)) == 1
    assert rows[0]["images"] == (str((tmp_path / "a.png").resolve()),) * 2


@pytest.mark.parametrize(("family", "template"), [*NAMED, ("qwen2_5_vl", "vicuna")])
def test_a_template_that_is_saved_asks_processors_for_pictures(
    family: str, template: str, tmp_path: Path
) -> None:
    """What was taught under a template's name is what a processor makes of the chat template that is saved with it."""
    model = seeing.folder(tmp_path / "model", family)
    seeing.picture(tmp_path / "a.png", 150, 90)
    row = asked("what <image> is it", "a.png")
    row["messages"].insert(0, {"role": "system", "content": "look"})
    at = seeing.catalog(tmp_path, seen=[row])
    wanted, tokenizer = config(at, model, template=template), load_tokenizer(model)
    named = template_of(wanted, tokenizer)
    assert isinstance(named, Written)
    theirs = seeing.processor(model, family)
    theirs.chat_template = to_save(named, tokenizer, wanted) or theirs.chat_template
    chat = [{**m, "content": parts(m["content"])} for m in row["messages"]]
    text = theirs.apply_chat_template(chat, tokenize=False)
    ids = theirs(text=[text], images=[[load(tmp_path / "a.png")]])["input_ids"][0]
    assert prepare(wanted, tokenizer).train[0]["input_ids"] == ids
    theirs.chat_template = as_jinja(named, theirs.chat_template and picture_tokens(model).marker)
    plain = [{"role": m["role"], "content": m["content"].replace("<image>", "")} for m in row["messages"]]
    assert theirs.apply_chat_template(plain, tokenize=False) == theirs.apply_chat_template(
        [{**m, "content": parts(m["content"])} for m in plain], tokenize=False
    )


def test_a_picture_is_never_cut(tmp_path: Path, qwen: Path) -> None:
    seeing.picture(tmp_path / "a.png", 280, 280)  # 100 tokens
    seeing.picture(tmp_path / "b.png", 140, 280)  # 50
    later = asked("<image>one", "a.png")
    later["messages"] += [{"role": "user", "content": "<image>two"}, {"role": "assistant", "content": "cat"}]
    later["images"].append("a.png")
    long = asked("<image>one", "b.png", answer="red " * 300)
    early = asked("<image>" + "one " * 300 + "<image>", "b.png", "b.png")
    at = seeing.catalog(tmp_path, seen=[asked("<image>one", "a.png"), later, long, early])
    got = prepared(at, qwen, cutoff_len=240)
    pad = load_tokenizer(qwen).id_of("<|image_pad|>")
    assert [(len(r["input_ids"]) <= 240, r["input_ids"].count(pad)) for r in got.train] == [
        (True, 100), (True, 100), (True, 50)
    ]  # fmt: skip
    assert [[Path(p).name for p in r["images"]] for r in got.train] == [["a.png"], ["a.png"], ["b.png"]]
    found = got.report.dropped["an image does not fit into cutoff_len"]
    assert (found.count, found.examples[0]["file"], found.examples[0]["line"]) == (1, "seen.jsonl", 4)
    assert "100 of them pictures; cutoff_len is 240" in found.examples[0]["detail"]
    assert got.report.cut == 2
    tight = {"cutoff_len": 120}
    assert report_of(config(at, qwen, **tight), load_tokenizer(qwen)).kept == 0
    shrunk = {**tight, "image_max_pixels": 100 * 100}
    counted, rows = (
        report_of(config(at, qwen, **shrunk), load_tokenizer(qwen)),
        prepared(at, qwen, **shrunk).train,
    )
    assert counted.kept == len(rows) == 2
    assert counted.total_tokens == sum(len(r["input_ids"]) for r in rows)


def test_pairs_have_their_pictures_in_the_prompt(tmp_path: Path, qwen: Path) -> None:
    """LLaMA-Factory's rlhf_v: sharegpt, ranking, images."""
    seeing.picture(tmp_path / "a.png", 56, 84)
    entry = {
        "ranking": True, "formatting": "sharegpt",
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"},
    }  # fmt: skip
    row = {"conversations": [{"from": "human", "value": "<image>what"}], "images": ["a.png"]}
    row |= {side: {"from": "gpt", "value": said} for side, said in (("chosen", "red"), ("rejected", "blue"))}
    got = prepared(seeing.catalog(tmp_path, seen=([row], entry)), qwen, stage="dpo").train[0]
    assert set(got) == {"prompt_ids", "chosen_ids", "rejected_ids", "images"}
    assert got["prompt_ids"].count(load_tokenizer(qwen).id_of("<|image_pad|>")) == 6
    row["chosen"]["value"] = "<image>red"
    dropped = report_of(
        config(seeing.catalog(tmp_path, seen=([row], entry)), qwen, stage="dpo"), load_tokenizer(qwen)
    ).dropped
    assert list(dropped) == ["picture in an answer"]


def test_alpaca_and_openai_rows_and_bytes(
    tmp_path: Path, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = seeing.picture(tmp_path / "a.png", 56, 84).read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    shown = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what"}]
    by_url = {"messages": [{"role": "user", "content": shown}, {"role": "assistant", "content": "red"}]}
    alpaca = {"instruction": "<image>what", "input": "", "output": "red", "images": "a.png"}
    hugging = asked("<image>what", {"path": "a.png", "bytes": None}, answer="red")
    at = seeing.catalog(
        tmp_path, parts=([by_url], {"formatting": "openai", "columns": {"messages": "messages"}}),
        alpaca=([alpaca], {"columns": {"images": "images"}}), seen=[hugging],
    )  # fmt: skip
    ids = {name: prepared(at, qwen, name).train[0] for name in ("parts", "alpaca", "seen")}
    assert ids["parts"]["input_ids"] == ids["alpaca"]["input_ids"] == ids["seen"]["input_ids"]
    kept = Path(ids["parts"]["images"][0])
    assert kept.read_bytes() == data and kept.name == hashlib.sha256(data).hexdigest() + ".png"
    assert kept.is_relative_to(tmp_path / "cache")


def test_pictures_within_a_table_are_read_as_bytes(
    tmp_path: Path, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaMA-Factory's pokemon_cap and llava_1k_en: sets of the hub with pictures as bytes, and as parquet here."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    files = [str(seeing.picture(tmp_path / f"{i}.png", 56, 56 + 28 * i, i)) for i in range(3)]
    talks = [[{"from": "human", "value": "<image>what"}, {"from": "gpt", "value": "red"}]] * 3
    made = datasets.Dataset.from_dict(
        {"conversations": talks, "images": [[f] for f in files]},
        features=datasets.Features(
            {"conversations": datasets.List({"from": datasets.Value("string"), "value": datasets.Value("string")}),
             "images": datasets.List(datasets.Image())}
        ),
    )  # fmt: skip
    made.to_parquet(str(tmp_path / "hub" / "train.parquet"))
    columns = {"formatting": "sharegpt", "columns": {"messages": "conversations", "images": "images"}}
    _add(tmp_path, pokemon_cap={"hf_hub_url": str(tmp_path / "hub"), **columns})
    _add(tmp_path, here={"file_name": "hub/train.parquet", **columns})
    for name in ("pokemon_cap", "here"):
        got = prepared(tmp_path, qwen, name)
        pad = load_tokenizer(qwen).id_of("<|image_pad|>")
        assert [r["input_ids"].count(pad) for r in got.train] == [4, 6, 8], name
        assert [Path(r["images"][0]).read_bytes() for r in got.train] == [Path(f).read_bytes() for f in files]


def _add(at: Path, **entries: Any) -> None:
    path = at / "dataset_info.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | entries))


def test_rows_are_the_same_streamed_packed_and_from_the_cache(tmp_path: Path, qwen: Path) -> None:
    at = seeing.catalog(tmp_path, seen=seeing.chats(tmp_path, 12, longest=200), words=[asked("one")])
    whole = list(prepared(at, qwen).train)
    assert {type(r["images"]) for r in whole} == {tuple}
    streamed = prepared(at, qwen, streaming=True, max_steps=1, buffer_size=1).train
    assert sorted(map(str, streamed)) == sorted(map(str, whole))
    for _ in range(2):  # written, then read
        cached = prepared(at, qwen, tokenized_path=str(tmp_path / "rows"))
        assert list(cached.train) == whole
    saved = Rows.saved(_saved(prepared(at, qwen).train, tmp_path / "shared"))
    assert list(saved) == whole
    packed = prepared(at, qwen, packing=True, cutoff_len=2000).train
    pad = load_tokenizer(qwen).id_of("<|image_pad|>")
    assert sum(r["input_ids"].count(pad) for r in packed) == sum(r["input_ids"].count(pad) for r in whole)
    assert sum(len(r["images"]) for r in packed) == sum(len(r["images"]) for r in whole)
    assert "images" not in prepared(at, qwen, "words").train[0]
    assert prepared(at, qwen, "words,seen").train[0]["images"] == ()


def _saved(rows: Rows, folder: Path) -> Path:
    rows.save(folder)
    return folder


def test_cached_rows_know_when_their_pictures_have_changed(tmp_path: Path, qwen: Path) -> None:
    shown = seeing.picture(tmp_path / "a.png", 56, 56)
    at = seeing.catalog(tmp_path, seen=[asked("<image>one", "a.png")])
    knobs = {"tokenized_path": str(tmp_path / "rows")}
    prepared(at, qwen, **knobs)
    other = prepared(at, qwen, image_max_pixels=40 * 40, **knobs).report.notes
    assert any("pictures of another size" in note for note in other)
    later = shown.stat().st_mtime + 60
    os.utime(shown, (later, later))
    with pytest.raises(ConfigError, match=r"a\.png has changed since"):
        prepared(at, qwen, **knobs)
    shown.unlink()
    with pytest.raises(ConfigError, match=r"a\.png, which is gone"):
        prepared(at, qwen, **knobs)


# --- files that are wrong ----------------------------------------------------------------------------------------------


def planted(at: Path) -> list[tuple[dict[str, Any], str]]:
    """Rows each with one defect, and the reason by which it is reported."""
    seeing.picture(at / "good.png", 56, 56)
    seeing.picture(at / "good.jpg", 300, 300)
    (at / "half.png").write_bytes((at / "good.png").read_bytes()[:-40])
    (at / "half.jpg").write_bytes((at / "good.jpg").read_bytes()[:900])
    (at / "bomb.png").write_bytes(bomb(50_000, 50_000))
    (at / "flat.png").write_bytes(bomb(0, 10))
    (at / "text.png").write_text("no picture")
    (at / "empty.png").write_bytes(b"")
    seeing.picture(at.parent / "outside" / "secret.png", 56, 56)
    (at / "link.png").symlink_to(at.parent / "outside" / "secret.png")
    (at / "turning.png").symlink_to("turning.png")
    (at / "folder.png").mkdir()
    os.mkfifo(at / "pipe.png")
    seeing.picture(at / "long.png", 2, 900)
    one = "<image>one"
    outside, network = "picture outside the media folder", "picture on the network, which is not fetched"
    broken, missing, none = "picture cut off or damaged", "picture not found", "not a picture"
    return [
        (asked(one, "gone.png"), missing),
        (asked("<image><image>one", "good.png"), "pictures and <image> do not match"),
        (asked("one", "good.png"), "pictures and <image> do not match"),
        (asked(one), "pictures and <image> do not match"),
        (asked(one, "half.png"), broken),
        (asked(one, "half.jpg"), broken),
        (asked(one, "bomb.png"), "picture too large"),
        (asked(one, "flat.png"), none),
        (asked(one, "text.png"), none),
        (asked(one, "empty.png"), none),
        (asked(one, "link.png"), outside),
        (asked(one, "../outside/secret.png"), outside),
        (asked(one, "/etc/passwd"), outside),
        (asked(one, "turning.png"), missing),
        (asked(one, "folder.png"), missing),
        (asked(one, "pipe.png"), missing),
        (asked(one, "bad\0name.png"), missing),
        (asked(one, "http://127.0.0.1:9/a.png"), network),
        (asked(one, "HTTPS://u:secretpass@host/a.png"), network),
        (asked(one, "file:///etc/passwd"), network),
        (asked(one, "data:image/png;base64,####"), none),
        (asked(one, {"bytes": None, "path": None}), none),
        (asked(one, 7), none),
        (asked(one, "good.png", answer="see <image>"), "pictures and <image> do not match"),
        (asked(one, "long.png"), "picture too long for its width"),
        (asked(one + "<|image_pad|>", "good.png"), "a picture's token in the text"),
    ]


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is very large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def test_every_planted_defect_is_reported_with_its_file_and_line(tmp_path: Path, qwen: Path) -> None:
    at = tmp_path / "data"
    at.mkdir()
    rows = planted(at)
    seeing.catalog(at, seen=[*(row for row, _ in rows), asked("<image>one", "good.png")])
    report = report_of(config(at, qwen), load_tokenizer(qwen))
    assert (report.kept, report.read) == (1, len(rows) + 1)
    told = {e["line"]: reason for reason, f in report.dropped.items() for e in f.examples}
    wanted = {line: reason for line, (_, reason) in enumerate(rows, start=1)}
    few = {line: reason for line, reason in wanted.items() if line in told}
    assert told == few
    assert {r: f.count for r, f in report.dropped.items()} == Counter(wanted.values())
    assert {e["file"] for f in report.dropped.values() for e in f.examples} == {"seen.jsonl"}
    assert "secretpass" not in str(report.as_dict())


def test_a_set_that_names_no_pictures_and_speaks_of_them_is_told(tmp_path: Path, qwen: Path) -> None:
    entry = {**seeing.SHAREGPT, "columns": {"messages": "messages"}}
    at = seeing.catalog(tmp_path, seen=([asked("<image>one", "a.png"), asked("one")], entry))
    report = report_of(config(at, qwen), load_tokenizer(qwen))
    assert (report.kept, report.findings["<image> without a picture"].count) == (2, 1)


def test_a_colon_in_a_name_is_no_address(tmp_path: Path, qwen: Path) -> None:
    seeing.picture(tmp_path / "at 12:30.png", 56, 56)
    at = seeing.catalog(tmp_path, seen=[asked("<image>one", "at 12:30.png")])
    assert Path(prepared(at, qwen).train[0]["images"][0]).name == "at 12:30.png"


def test_a_stray_token_is_dropped_from_rows_of_words_too(tmp_path: Path, qwen: Path) -> None:
    at = seeing.catalog(tmp_path, seen=[asked("one <|image_pad|> two"), asked("one")])
    assert list(report_of(config(at, qwen), load_tokenizer(qwen)).dropped) == [
        "a picture's token in the text"
    ]
    kept = prepared(at, qwen, split_special_tokens=True)
    assert len(kept.train) == 2


def test_a_model_that_reads_text_alone_is_told_before_launch(tmp_path: Path, qwen: Path) -> None:
    model = tiny.model(tmp_path / "text")
    seeing.picture(tmp_path / "a.png", 56, 56)
    at = seeing.catalog(tmp_path, seen=[asked("<image>one", "a.png")])
    said = [p.sentence for p in problems(config(at, model, cutoff_len=64))]
    assert any("seen holds pictures, and" in s and "reads text alone" in s for s in said)
    with pytest.raises(ConfigError, match="reads text alone"):
        prepared(at, model)
    told = notes(config(at, model, cutoff_len=64, image_max_pixels=99, media_dir="x"))
    assert "--media_dir, --image_max_pixels have no effect: the model reads text alone." in told
    assert not any("reads text alone" in n for n in notes(config(at, qwen, image_max_pixels=99)))


# --- opening -----------------------------------------------------------------------------------------------------------


def test_a_picture_is_upright_opaque_and_in_colours(tmp_path: Path) -> None:
    lying = Image.new("RGB", (40, 20), "red")
    lying.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        for name in ("a.jpg", "a.png", "a.webp"):
            lying.save(tmp_path / name, exif=exif, quality=100) if name != "a.png" else lying.save(
                tmp_path / name, exif=exif
            )
            wanted = ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB")
            assert load(tmp_path / name).tobytes() == wanted.tobytes()
            assert size_of(tmp_path / name) == wanted.size
            (tmp_path / name).unlink()
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    for name, image in {
        "rgba.png": clear,
        "la.png": clear.convert("LA"),
        "p.gif": clear.convert("P"),
    }.items():
        image.save(tmp_path / name, **({"transparency": 0} if name == "p.gif" else {}))
    assert {load(tmp_path / n).getpixel((1, 1)) for n in ("rgba.png", "la.png", "p.gif")} == {(255, 255, 255)}
    lying.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    seen = load(tmp_path / "cmyk.jpg")
    assert seen.mode == "RGB" and seen.getpixel((35, 10))[0] > 200 > 60 > seen.getpixel((35, 10))[2]
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert load(tmp_path / "deep.png").getpixel((1, 1)) == (156, 156, 156)
    Image.new("1", (8, 8), 1).save(tmp_path / "bit.png")
    assert load(tmp_path / "bit.png").getpixel((1, 1)) == (255, 255, 255)


def test_sizes_are_bounded_and_follow_the_file(tmp_path: Path) -> None:
    path = seeing.picture(tmp_path / "a.png", 300, 100)
    assert (
        size_of(path) == (300, 100)
        and size_of(path, 3000) == (94, 31)
        and size_of(path, None, 120_000) == (600, 200)
    )
    assert load(path, 3000).size == (94, 31)
    seeing.picture(path, 30, 10)
    assert size_of(path) == (30, 10)
    assert fitted(5, 4000, 100, 50) == (1, 282) and fitted(1, 1, None, 1024) == (32, 32)


def test_what_is_counted_is_what_is_trained() -> None:
    assert set(BY_MODEL) == set(FAMILIES) == set(seeing.FAMILIES)


@pytest.mark.parametrize(("family", "told"), [
    ("gemma3", {"mm_tokens_per_image": 64}),
    ("smolvlm", {"scale_factor": 4, "vision_config": {"image_size": 512, "patch_size": 16}}),
])  # fmt: skip
def test_a_folder_without_a_processors_settings_counts_as_its_model(
    family: str, told: dict[str, Any], tmp_path: Path
) -> None:
    model = seeing.folder(tmp_path, family)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (model / name).unlink()
    (model / "config.json").write_text(json.dumps({"model_type": family, "vision_config": {}, **told}))
    tokens = picture_tokens(model)
    assert tokens is not None and tokens.pieces(512, 512).runs[0] == 64


def test_tokens_are_counted_as_the_processors_count(tmp_path: Path) -> None:
    chance = random.Random(1)
    sizes = [
        (chance.randint(1, 2500) // chance.choice((1, 30)) + 1, chance.randint(1, 2500)) for _ in range(400)
    ]
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        tokens = picture_tokens(seeing.folder(tmp_path / family, family))
        theirs = seeing.processor(tmp_path / family, family)
        fit = [s for s in sizes if max(s) <= 200 * min(s)]
        wanted = theirs._get_num_multimodal_tokens(image_sizes=[(h, w) for w, h in fit])["num_image_tokens"]
        assert tokens is not None and [tokens.count(*size) for size in fit] == wanted
    gemma = picture_tokens(seeing.folder(tmp_path / "gemma", "gemma3"), pan_and_scan=True)
    made, image = seeing.image_processor("gemma3"), np.zeros
    assert gemma is not None
    for width, height in sizes[:60]:
        crops = made.pan_and_scan(image((3, height, width), np.uint8), 256, 4, 1.2)
        assert gemma.count(width, height) == 256 * (len(crops) + 1)


# --- before launch -----------------------------------------------------------------------------------------------------


def test_the_form_names_every_defect_with_its_file_and_line(tmp_path: Path, qwen: Path) -> None:
    at = tmp_path / "data"
    at.mkdir()
    rows = [row for row in planted(at) if row[1] != "a picture's token in the text"]
    seeing.catalog(at, seen=[asked("<image>one", "good.png"), *(row for row, _ in rows)], bad=[rows[0][0]])
    said = "".join(n for n in notes(config(at, qwen)) if "for their pictures" in n)
    assert f"seen: {len(rows)} of the first {len(rows) + 1} rows will be left out" in said
    first = {reason: line for line, (_, reason) in reversed(list(enumerate(rows, start=2)))}
    assert all(f"{reason} ({[r for _, r in rows].count(reason)}), line {line} of seen.jsonl" in said
               for reason, line in first.items())  # fmt: skip
    assert "secretpass" not in said
    (found,) = (p for p in problems(config(at, qwen, "bad")) if "no row's pictures" in p.sentence)
    assert "picture not found (1), line 1 of bad.jsonl: gone.png" in found.sentence
    assert not [n for n in notes(config(seeing.catalog(at, seen=[asked("one")]), qwen)) if "pictures" in n]


def test_a_picture_longer_than_the_cutoff_is_told_before_launch(tmp_path: Path, qwen: Path) -> None:
    seeing.picture(tmp_path / "a.png", 700, 700)
    at = seeing.catalog(tmp_path, seen=[asked("<image>one", "a.png"), asked("one")])
    (said,) = (n for n in notes(config(at, qwen, cutoff_len=500)) if "pictures" in n)
    assert "an image does not fit into cutoff_len (1), line 1 of seen.jsonl: 625 tokens of pictures" in said
    assert not [n for n in notes(config(at, qwen, cutoff_len=800)) if "pictures" in n]


def test_the_plan_counts_the_tokens_of_pictures(tmp_path: Path, qwen: Path) -> None:
    seeing.picture(tmp_path / "a.png", 280, 560)
    at = seeing.catalog(
        tmp_path, seen=[asked("<image>one", "a.png")] * 3 + [asked("one")], words=[asked("one")]
    )
    lengths, words = (data_of(config(at, qwen, name)).lengths for name in ("seen", "words"))
    true = report_of(config(at, qwen), load_tokenizer(qwen)).tokens
    assert lengths and words and lengths.longest > 200 > words.longest
    assert abs(lengths.mean - true["mean"]) < 60  # the template's own words are not counted


def test_what_the_model_sees_has_each_picture_at_its_tokens(tmp_path: Path, qwen: Path, capsys: Any) -> None:
    seeing.picture(tmp_path / "a.png", 56, 84)
    seeing.picture(tmp_path / "b.png", 84, 84, 1)
    at = seeing.catalog(tmp_path, seen=[asked("<image>or<image>", "a.png", "b.png")])
    found = show("seen", 0, str(qwen), dataset_dir=str(at))
    runs = [
        (k, len(list(run)))
        for k, run in groupby(t["picture"] for t in found["sides"]["text"])
        if k is not None
    ]
    assert runs == [(0, 6), (1, 9)]
    assert [(Path(p["path"]).name, p["width"], p["height"], p["tokens"]) for p in found["pictures"]] == [
        ("a.png", 56, 84, 6), ("b.png", 84, 84, 9)
    ]  # fmt: skip
    json.dumps(found)
    assert tuner(["data", "show", "seen", "--dataset_dir", str(at), "--model", str(qwen)]) == 0
    assert "<<|image_pad|> x 9: b.png, 84x84>" in capsys.readouterr().out
    small = thumbnail(found["pictures"][0]["path"], 20)
    assert small.startswith(b"RIFF") and Image.open(BytesIO(small)).size == (13, 20)


def test_a_clean_copy_lacks_rows_with_bad_pictures_and_keeps_their_bytes(
    tmp_path: Path, qwen: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = seeing.picture(tmp_path / "a.png", 56, 56).read_bytes()
    talk = [{"role": "user", "content": "<image>one"}, {"role": "assistant", "content": "cat"}]
    half = [{"role": "user", "content": "<image>two"}, {"role": "assistant", "content": "cat"}]
    table = pyarrow.Table.from_pylist(
        [{"messages": talk, "images": [data]}, {"messages": half, "images": [data[:60]]}]
    )
    pyarrow.parquet.write_table(table, tmp_path / "seen.parquet")
    _add(tmp_path, seen={"file_name": "seen.parquet", **seeing.SHAREGPT})
    made = mended(read_catalog(tmp_path)["seen"], "clean", tmp_path, tmp_path)
    assert (made.kept, made.unusable) == (1, 1)
    assert prepared(tmp_path, qwen, "clean").train[0] == prepared(tmp_path, qwen).train[0]


@pytest.mark.parametrize(
    ("column", "value"),
    [("images", ["a/b.PNG", "c.jpg"]), ("image", "x.webp"), ("img", {"bytes": None, "path": "x.bin"})],
)
def test_a_column_of_pictures_is_guessed(tmp_path: Path, column: str, value: Any) -> None:
    row = {
        "messages": [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}],
        column: value,
    }
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    found = guess(path)
    assert found.attributes["columns"] == {"messages": "messages", "images": column}
    path.write_text(json.dumps({"instruction": "q", "output": "a", "images": "none of them"}) + "\n")
    assert "images" not in guess(path).attributes["columns"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of EXIF that was damaged too
def test_no_damaged_file_raises_what_is_not_said(tmp_path: Path) -> None:
    """Files of every format, cut and changed at random: a picture comes of it, or a reason."""
    chance = random.Random(7)
    noise = Image.effect_noise((24, 16), 80).convert("RGB")
    seeds = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        into = BytesIO()
        noise.save(into, kind)
        seeds.append(into.getvalue())
    told: Counter[str] = Counter()
    for number in range(600):
        data = bytearray(chance.choice(seeds))
        if chance.random() < 0.3:
            data = data[: chance.randrange(len(data))]
        for _ in range(chance.choice((1, 8, 40)) if data else 0):
            data[chance.randrange(min(len(data), chance.choice((32, 10**9))))] = chance.choice(
                (0, 255, chance.randrange(256))
            )
        path = tmp_path / str(number)
        path.write_bytes(data)
        try:
            told[load(path).mode] += 1
        except PictureError as error:
            told[error.reason] += 1
    assert set(told) <= {"RGB", "picture cut off or damaged", "not a picture", "picture too large"}
    assert told["RGB"] > 50 and told["picture cut off or damaged"] > 50


def test_pictures_of_callers_take_only_so_much_room(tmp_path: Path) -> None:
    keep = Keep(tmp_path / "sent", most=1)
    for shade in range(5):
        made = BytesIO()
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(made, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(made.getvalue()).decode()}"
        path = located(url, None, keep)
        os.utime(path, (shade, shade))
        assert [str(file) for file in keep.folder.iterdir()] == [path]  # the newest one stays
