"""What `pip install` of the built wheel gives, in an environment and a folder that have nothing of this checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
pytest.importorskip("hatchling", reason="hatchling is not installed; pip install -e .[dev]")
from conftest import FONTS, Studio, _end_workers, fonts  # noqa: E402

ROOT = Path(__file__).parents[2]
expect = sync_api.expect
pytestmark = pytest.mark.browser


class Installed(Studio):
    """`tuner` of another environment, typed in the home folder itself."""

    @property
    def folder(self) -> Path:
        return self.home

    @property
    def environment(self) -> dict[str, str]:
        left_out = ("TUNER_HOME", "PYTHONPATH")
        return {name: value for name, value in super().environment.items() if name not in left_out}


MINE = (".streamlit/secrets.toml", "data/mine.json", "data/uploads/starter.json", "pages/notes.pyc")
"""What may lie in a person's checkout and is no part of the product."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a checkout in which somebody has worked."""
    checkout, built = tmp_path_factory.mktemp("work") / "checkout", tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".venv", ".git", "mlruns", "tests", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, checkout, ignore=left_out)
    for name in MINE:
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("mine")
    _pip("wheel", str(checkout), "--no-deps", "--no-build-isolation", "-w", str(built))
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tuner` as it is installed in an environment of its own, which borrows only the libraries of this one."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, symlinks=True)
    packages = next(place.glob("lib/python*/site-packages"))
    libraries = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "borrowed.pth").write_text("\n".join(libraries))
    _pip("--python", str(place / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    return place / "bin" / "tuner"


def _pip(*words: str) -> None:
    quiet = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(quiet, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def install(program: Path) -> Iterator[Callable[[Path], Installed]]:
    """The installed studio over a folder; nothing of it goes on afterwards."""
    made: list[Installed] = []

    def over(folder: Path) -> Installed:
        studio = Installed(folder)
        studio.program = (str(program),)
        made.append(studio)
        return studio

    yield over
    for studio in made:
        studio.kill()
        _end_workers(studio.home)


@pytest.fixture
def studio(install: Callable[[Path], Installed], tmp_path: Path) -> Installed:
    """It, over an empty folder."""
    return install(tmp_path)


def test_the_first_start_lays_out_the_samples(studio: Installed) -> None:
    studio.start()
    assert (studio.home / "mlruns").is_dir()
    for file in ("dataset_info.json", "starter/model.safetensors", "starter_dpo.json"):
        assert (studio.home / "data" / file).read_bytes() == (ROOT / "data" / file).read_bytes()
    font = "static/fonts/inter-latin-wght-normal.woff2"
    with urllib.request.urlopen(f"{studio.url}/app/{font}", timeout=60) as answer:
        assert answer.read() == (ROOT / font).read_bytes()


@pytest.mark.slow  # the same pages of the checkout are in the other files here
def test_every_page_is_there(studio: Installed, page) -> None:
    studio.start()
    page.goto(studio.url)
    links = page.get_by_test_id("stSidebarNav").get_by_role("link")
    expect(links).to_have_count(10)
    for name in links.all_inner_texts():
        title = name.split("\n")[-1].strip()
        page.get_by_test_id("stSidebarNav").get_by_role("link", name=title).click()
        if title != "Home":
            expect(page.get_by_role("heading", name=title, level=1)).to_be_visible()
    assert not page.locator("[data-testid=stException]").count()
    assert fonts(page) == FONTS


def test_samples_go_to_a_folder_without_a_catalog_and_replace_nothing(studio: Installed) -> None:
    mine = studio.home / "data" / "starter_dpo.json"
    mine.parent.mkdir()
    mine.write_text("[]")
    studio.tuner("queue", "--pause")
    run = studio.tuner("submit", "starter-dpo").split()[-1]
    assert (studio.home / "mlruns" / "runs" / run / "config.yaml").is_file()
    assert mine.read_text() == "[]"
    assert len(json.loads(studio.tuner("data", "list", "--json").splitlines()[-1])) > 0
    (studio.home / "data" / "starter" / "model.safetensors").unlink()
    with pytest.raises(AssertionError, match="safetensors|weights|model"):
        studio.tuner("submit", "starter-dpo")
    assert not (
        studio.home / "data" / "starter" / "model.safetensors"
    ).exists()  # what was deleted stays deleted


def test_only_what_belongs_to_the_product_is_in_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"tuner"}
    assert not [name for name in names for mine in MINE if name.endswith(mine)]
    samples = [path.name for path in (ROOT / "data").glob("starter*")]
    assert len(samples) > 10
    assert all([name for name in names if name.startswith(f"tuner/shipped/data/{one}")] for one in samples)


@pytest.mark.slow
def test_the_installed_studio_trains(studio: Installed) -> None:
    done = subprocess.run(
        [*studio.program, "train", "starter-dpo", "max_steps=2", "probe_samples=4"],
        cwd=studio.folder, env=studio.environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "finished"
    assert "starter-starter_dpo-dpo" in studio.tuner("adapters")


def test_the_version_is_that_of_the_package(program: Path) -> None:
    from tuner import __version__

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run([program, "--version"], capture_output=True, text=True, env=environment, cwd="/")
    assert said.stdout.strip() == f"tuner {__version__}"
