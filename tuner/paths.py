"""Where things are. Computed at each call, so that a test or a person can move the whole studio with one variable."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path

from tuner.text.lookup import tr

Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp:
    """What is another once a file was written anew, for what is kept of files. Raises OSError."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def home() -> Path:
    """The studio's folder: TUNER_HOME, or the folder the command is typed in."""
    named = Path(os.environ.get("TUNER_HOME") or "")
    return _resolved(named if named.is_absolute() else Path.cwd() / named)


@lru_cache(maxsize=16)
def _resolved(path: Path) -> Path:
    """Its links followed, once: every place is asked for many times in each script run of a page."""
    return path.resolve()


def mlruns() -> Path:
    """MLflow's database, artifacts and the run folders."""
    return home() / "mlruns"


def runs() -> Path:
    """One folder a run: config.yaml, status.json, metrics.jsonl, log.txt, lock, checkpoints/."""
    return mlruns() / "runs"


def datasets() -> Path:
    """The catalog the form starts with."""
    return home() / "data"


def models() -> Path:
    """Converted models, each made once and named in the runs that use it."""
    return mlruns() / "models"


def user_cache() -> Path:
    """What is made once for all studios of a person, and made anew where it is missing."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuner"


def pictures() -> Path:
    """Pictures that rows bring as bytes, each a file named by its sha256; made anew where one is missing."""
    return user_cache() / "pictures"


def shown() -> Path:
    """Pictures that people showed in chats, named by their sha256: talks name them."""
    return mlruns() / "shown"


def package() -> Path:
    """The installed package: recipes and other files that ship with it."""
    return Path(__file__).resolve().parent


def shipped() -> Path:
    """The folder with app.py, pages/, static/, docs/ and the samples in data/: in an installed package, or the checkout."""
    installed = package() / "shipped"
    return installed if installed.is_dir() else package().parent


def inside(path: Path | str, root: Path) -> Path:
    """`path` resolved, if it lies under `root` (symbolic links followed).

    Raises ValueError with one sentence otherwise.
    """
    real = (root / path).resolve()
    if not real.is_relative_to(root.resolve()):
        raise ValueError(tr("{path} lies outside {root}; choose a place inside it.", path=path, root=root))
    return real


def slug(text: str, longest: int = 60) -> str:
    """A name that is safe as one path component everywhere."""
    kept = re.sub(r"[^\w.-]+", "-", text, flags=re.UNICODE).strip("-.")
    return kept[:longest] or "run"
