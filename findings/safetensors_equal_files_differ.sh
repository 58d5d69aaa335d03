#!/usr/bin/env bash
# safetensors 0.8.0
#
# Behaviour: the keys of a file's metadata are written in another order at every save, in one process as well.
# Seen: the same tensor with the same eight metadata keys, saved five times: several different sha256.
# Why a good guess is wrong: 'the same weights make the same file, so a digest of the file names the weights'. A registry that finds an adapter
# again by the file's digest registers it twice; two equal checkpoints look changed. With no metadata, or one key, the bytes are equal.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import hashlib

import numpy as np
from safetensors.numpy import save


def digests(keys):
    made = (save({"w": np.zeros(1)}, metadata={key: "1" for key in keys}) for _ in range(20))
    return {hashlib.sha256(data).hexdigest() for data in made}


assert len(digests("abcdefgh")) > 1
assert len(digests("a")) == len(digests("")) == 1
print("equal tensors and metadata, different bytes")
PYTHON
