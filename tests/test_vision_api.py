"""Pictures sent to a served model: data: URLs alone, seen as the model's own processor shows them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import tiny_vision
from PIL import Image

openai = pytest.importorskip("openai", reason="the openai client is a test's requirement: pip install openai")

from tests.test_api import Served, serving  # noqa: E402

KIND = "qwen2_5_vl"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("seeing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        folder = tiny_vision.model(home / "model", KIND)
        yield from serving(home, model_name_or_path=str(folder))


def url_of(picture: Image.Image) -> str:
    kept = BytesIO()
    picture.save(kept, "PNG")
    return f"data:image/png;base64,{base64.b64encode(kept.getvalue()).decode()}"


def asked(served: Served, *urls: str, **more: Any) -> Any:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [*parts, {"type": "text", "text": "red or blue <image>"}]
    said = {
        "model": "base",
        "temperature": 0,
        "max_tokens": 5,
        "messages": [{"role": "user", "content": content}],
    }
    return served.client().chat.completions.create(**said | more)


def picture(colour: str, side: int = 70) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def test_a_picture_that_is_sent_is_seen(served: Served, tmp_path: Path) -> None:
    shown = [picture("red"), picture("blue", 100)]
    processor = tiny_vision.whole_processor(tiny_vision.model(tmp_path / "same", KIND), KIND)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "red or blue <image>"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    given = processor(images=shown, text=[text], return_tensors="pt", add_special_tokens=False)
    made = served.model.generate(**given, max_new_tokens=5, do_sample=False, eos_token_id=[2])
    expected = processor.tokenizer.decode(made[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    answer = asked(served, *map(url_of, shown))
    assert answer.choices[0].message.content == expected
    assert answer.usage.prompt_tokens == given["input_ids"].shape[1]
    stream = asked(served, *map(url_of, shown), stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream) == expected


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1/a.png", "data: URL"),
        ("https://example.com/a.png", "data: URL"),
        ("file:///etc/passwd", "data: URL"),
        ("/etc/passwd", "data: URL"),
        ("data:text/plain;base64,aGVsbG8=", "data: URL"),
        ("data:image/png;base64,aGVsbG8=", "not a picture"),
        ("data:image/png;base64,!!!", "base64"),
        (url_of(Image.new("1", (9000, 9000))), "too large"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(served: Served, url: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        asked(served, url)
    assert refused.value.body["param"] == "messages" and refused.value.body["message"].count("\n") == 0


def test_only_the_user_shows_pictures(served: Served) -> None:
    part = {"type": "image_url", "image_url": {"url": url_of(picture("red"))}}
    with pytest.raises(openai.BadRequestError, match="of the user"):
        asked(served, messages=[{"role": "system", "content": [part]}, {"role": "user", "content": "x"}])
