#!/usr/bin/env bash
# pyarrow 25.0.1
#
# Behaviour: Table.to_pylist raises Python's own errors, not ArrowException, for values that a valid file may hold and Python cannot.
# Seen: a timestamp in the year 10000 raises OverflowError; a string column whose bytes are no UTF-8 (which pyarrow does not check when it
# reads a file, and validate() passes) raises UnicodeDecodeError.
# Why a good guess is wrong: 'except pyarrow.ArrowException covers reading a column'. One such cell in a million rows ends the program
# with a traceback although every other row is fine.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==25.0.1
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import pyarrow as pa


def raised(array):
    try:
        array.to_pylist()
    except Exception as error:
        return type(error), isinstance(error, pa.ArrowException)
    return None


late = pa.array([253402300800], pa.timestamp("s"))
assert raised(late) == (OverflowError, False), raised(late)
offsets = pa.array([0, 2], pa.int32()).buffers()[1]
text = pa.StringArray.from_buffers(1, offsets, pa.py_buffer(b"\xff\xfe"))
text.validate()
assert raised(text) == (UnicodeDecodeError, False), raised(text)
print("to_pylist raises OverflowError and UnicodeDecodeError")
PYTHON
