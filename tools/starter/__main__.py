"""`python -m tools.starter` makes the sample sets and the starter model of `data/` again.

On one data-centre GPU it takes a few minutes; `--documents` and `--steps` make a smaller model on a CPU, and `--sets`
makes none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tools.starter import seeing, sets
from tools.starter.training import Recipe, make


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, write the sets and make the model."""
    parser = argparse.ArgumentParser(prog="python -m tools.starter", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data"), help="the folder that they are written to")
    parser.add_argument("--sets", action="store_true", help="only the sample sets, in a second")
    parser.add_argument(
        "--vision", action="store_true", help="the sets, and the model that sees, on a CPU in half an hour"
    )
    parser.add_argument("--start", type=Path, help="go on from the model in this folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, default in vars(Recipe()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    chosen = vars(parser.parse_args(arguments))
    out, only_sets = chosen.pop("out"), chosen.pop("sets")
    device, start = chosen.pop("device"), chosen.pop("start")
    sets.write(out)
    if chosen.pop("vision"):
        seeing.make(out / "starter-vision", seeing.Recipe())
    elif not only_sets:
        make(Recipe(**chosen), out / "starter", device, start)


if __name__ == "__main__":
    main()
