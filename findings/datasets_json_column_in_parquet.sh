#!/usr/bin/env bash
# datasets 5.2.0, pyarrow 25.0.1, pandas 3.1.1
#
# Behaviour: a JSON Lines column that holds a text in one row and a list in another (OpenAI's message contents do) is read as
# datasets' Json feature; to_parquet writes it as the extension type arrow.json, and every value is JSON text in the file.
# Seen: pyarrow's to_pylist and pandas' read_parquet give '"plain"', with its quotes, for the text plain; datasets itself gives plain.
# Why a good guess is wrong: 'a parquet string column holds the strings'. A reader that is not datasets trains a model on the quotes and
# on backslashes, and no error says so. The extension's name in the schema is the only sign.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==25.0.1 pandas==3.1.1
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import json

import pandas as pd
import pyarrow.parquet as pq
from datasets import load_dataset

rows = [{"content": "plain"}, {"content": [{"type": "text", "text": "part"}]}]
with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
loaded = load_dataset("json", data_files="rows.jsonl", split="train", cache_dir="cache")
assert loaded["content"][0] == "plain"
loaded.to_parquet("rows.parquet")
table = pq.read_table("rows.parquet")
assert table.schema.field("content").type.extension_name == "arrow.json"
assert table.to_pylist()[0] == {"content": '"plain"'}, table.to_pylist()
assert pd.read_parquet("rows.parquet").content.tolist()[0] == '"plain"'
again = load_dataset("parquet", data_files="rows.parquet", split="train", cache_dir="cache")
assert again["content"][0] == "plain"
print("a text in a mixed column is written with its quotes")
PYTHON
