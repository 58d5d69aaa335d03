#!/usr/bin/env bash
# llamafactory 0.9.5 (omegaconf 2.x)
#
# Behaviour: ${...} in a YAML file is not filled in: the file goes through OmegaConf, but to_container is called without resolve.
# Seen: output_dir: saves/${stage}/run is taken as it stands, and a folder of that name would be made.
# Why a good guess is wrong: 'the file is read with OmegaConf, whose documentation shows ${stage}, so it works'. Two runs with different
# stages write into one folder called saves/${stage}/run, the second over the first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check llamafactory==0.9.5
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

with open("run.yaml", "w") as file:
    file.write("stage: sft\noutput_dir: saves/${stage}/run\n")
sys.argv = ["llamafactory-cli", "run.yaml"]
from llamafactory.hparams.parser import read_args  # noqa: E402

assert read_args() == {"stage": "sft", "output_dir": "saves/${stage}/run"}, read_args()
print("${stage} stays as it is")
PYTHON
