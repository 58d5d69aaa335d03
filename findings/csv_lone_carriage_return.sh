#!/usr/bin/env bash
# CPython 3.11 (csv), pandas 3.1.1
#
# Behaviour: with lineterminator "\n" (pandas' default on Linux) csv.writer does not quote a cell that holds a lone carriage return, and
# csv.reader ends a row there.
# Seen: the row a, x<CR>y is written as a,x<CR>y and read back as two rows, [a, x] and [y]; pandas' to_csv and read_csv do the same, and
# fill the missing cell with NaN.
# Why a good guess is wrong: 'what the csv module writes, it reads back'. Answers copied from old Mac files or from terminals hold lone
# carriage returns; after a round trip through to_csv the answer is cut and a question without an answer appears.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check pandas==3.1.1
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import csv
import io

import pandas as pd

text = io.StringIO()
csv.writer(text, lineterminator="\n").writerow(["a", "x\ry"])
assert text.getvalue() == "a,x\ry\n", repr(text.getvalue())
assert list(csv.reader(io.StringIO(text.getvalue(), newline=""))) == [["a", "x"], ["y"]]
pd.DataFrame({"question": ["a"], "answer": ["x\ry"]}).to_csv("rows.csv", index=False)
back = pd.read_csv("rows.csv")
assert len(back) == 2 and back.answer.isna().tolist() == [False, True], back
print("one row with a lone carriage return comes back as two")
PYTHON
