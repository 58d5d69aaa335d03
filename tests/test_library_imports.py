"""What a worker imports: transformers and PEFT whole, and none of what they take along and a run does not use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils import import_utils

from tuner.engine import library_imports

ROOT = Path(__file__).parents[1]
MODELS = Path(import_utils.__file__).parents[1] / "models"
LOADED = """
import json, sys
from tuner.config.config import make
from tuner.config.reading import parse_words
from tuner.engine import library_imports
from pathlib import Path
config = make(parse_words(sys.argv[1:]))
with library_imports.without_bitsandbytes(config):
    library_imports.begin()
    from tuner.engine import adapters, choice, samples, trainer
    from tuner.models import loading
    from peft import get_peft_model
    model = loading.load(config, loading.Source(Path("data/starter"), ""), bits=None, whole=False)
    get_peft_model(model, adapters.lora(config, model))
there = [name for name in ("datasets", "pandas", "scipy", "sklearn", "bitsandbytes", "trl") if name in sys.modules]
import datasets, transformers
print(json.dumps([there, transformers.LlamaForCausalLM.__name__, datasets.Dataset.__name__]))
"""


def loaded(*words: str) -> list[object]:
    ran = subprocess.run(
        [sys.executable, "-c", LOADED, *words], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found: list[object] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_what_a_run_does_not_need_is_not_imported_and_can_be_later() -> None:
    assert loaded("starter-dpo") == [[], "LlamaForCausalLM", "Dataset"]


@pytest.mark.slow  # a process that imports everything once more, for one library
def test_a_library_that_quantizes_is_seen_by_a_run_that_asks_for_it() -> None:
    pytest.importorskip("bitsandbytes")
    there, *_ = loaded("starter-dpo", "--quantization_bit", "4")
    assert there == ["bitsandbytes"]


def test_what_models_export_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library_imports, "_is_installed", lambda folder: True)
    find, asked = import_utils.define_import_structure.__wrapped__, []

    def counted(path: str | Path, prefix: str | None) -> library_imports.Structure:
        asked.append(prefix)
        return find(path, prefix)

    known = library_imports.remembered(counted)
    for prefix in (None, "models"):
        assert known(MODELS, prefix) == known(MODELS / "__init__.py", prefix) == find(MODELS, prefix)
    assert asked == [None, "models"]
    for kept in (tmp_path / "tuner").iterdir():
        kept.write_text("{}")
    assert known(MODELS, None) == find(MODELS, None) and len(asked) == 3
    known(MODELS / "llama", None)
    assert len(asked) == 4 and len(list((tmp_path / "tuner").iterdir())) == 2  # one model is read in no time
