"""`tuner data`: the catalog, the data report, and what the model sees of a row."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tuner import paths, samples
from tuner.cli.words import OK, parser, print_json, table
from tuner.config.reading import parse_words
from tuner.text.lookup import mark, tr
from tuner.text.message import Message


def data(words: list[str]) -> int:
    """Look at data before training: list, report NAME --model M, show NAME --row K --model M."""
    options_of = parser(data)
    verbs = options_of.add_subparsers(dest="verb", required=True)
    for name, about in (
        ("list", tr("the catalog")),
        ("report", tr("what would be kept, cut and dropped")),
        ("show", tr("one row, token by token")),
    ):
        one = verbs.add_parser(name, help=about)
        one.add_argument("--json", action="store_true", help="JSON")
        one.add_argument("--dataset_dir", default="data", help=tr("the folder that holds dataset_info.json"))
        if name != "list":
            one.add_argument("name", help=tr("a data set of the catalog"))
            one.add_argument(
                "--model", required=True, help=tr("the model whose tokenizer and template are used")
            )
        if name == "report":
            one.add_argument(
                "--sample", type=int, default=0, help=tr("read only so many rows, evenly from the set")
            )
        if name == "show":
            one.add_argument("--row", type=int, default=0, help=tr("the row, from 0"))
    options, rest = options_of.parse_known_args(words)
    samples.lay_out_for(getattr(options, "model", None))
    return {"list": _list, "report": _report, "show": _show}[options.verb](options, _knobs(options, rest))


def _knobs(options: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """Other flags are knobs: --stage, --cutoff_len, --template and the rest."""
    return {**parse_words(rest), "dataset_dir": options.dataset_dir}


def _model(name: str) -> str:
    folder = paths.home() / name
    return str(folder) if folder.is_dir() else name


def _list(options: argparse.Namespace, knobs: dict[str, Any]) -> int:
    from tuner.data.verbs import list_rows

    rows = list(list_rows(options.dataset_dir))
    if options.json:
        print_json(rows)
    else:
        heads = (mark("name"), mark("kind"), mark("rows"), mark("stages"), mark("source"), mark("problem"))
        cells = [
            {**r, "rows": "?" if r["rows"] is None else str(r["rows"]), "stages": ",".join(r["stages"])}
            for r in rows
        ]
        table(heads, [[_visible(cell[head]) for head in heads] for cell in cells])
    return OK


def _report(options: argparse.Namespace, knobs: dict[str, Any]) -> int:
    from tuner.data.verbs import report

    progress = None if options.json else _progress
    found = report(options.name, _model(options.model), progress, max(0, options.sample), **knobs)
    if options.json:
        print_json([found])
    else:
        _say_report(found)
    return OK


def _say_report(found: Mapping[str, Any]) -> None:
    """A report to be read; `--json` has all of it."""
    figures = {
        mark("Rows read"): f"{found['read']:,}",
        mark("Kept"): f"{found['kept']:,}",
        mark("Dropped"): f"{found['read'] - found['kept']:,}",
        mark("Truncated"): f"{found['cut']:,} ({found['cut_share']:.1%})",
        mark("Duplicates"): f"{found['duplicates']:,}",
        mark("Tokens trained on"): f"{found['trained_tokens']:,} ({found['trained_share']:.1%})",
        mark("Steps"): f"{found['steps']:,}",
    }
    table(("what", "value"), [(tr(name), said) for name, said in figures.items()])
    for title, findings in (
        (mark("Dropped rows"), found["dropped"]),
        (mark("Warnings"), found["findings"]),
    ):
        if findings:
            print(f"\n{tr(title)}")
            table(("rows", "what", "example"), [*map(_finding, findings.items())])
    for note in found["notes"]:
        print(f"\n{_visible(note)}")


def _finding(found: tuple[str, Mapping[str, Any]]) -> tuple[str, str, str]:
    what, finding = found
    first = finding["examples"][0]
    place = tr("{file} line {line}", file=first["file"], line=first["line"])
    return f"{finding['count']:,}", tr(what), _visible(f"{place}: {first['detail']}"[:160])


def _progress(share: float, text: Message) -> None:
    if sys.stderr.isatty():
        print(f"\r{100 * share:3.0f}% {text:<60}", end="" if share < 1 else "\n", file=sys.stderr, flush=True)


def _show(options: argparse.Namespace, knobs: dict[str, Any]) -> int:
    from tuner.data.verbs import show

    found = show(options.name, options.row, _model(options.model), **knobs)
    if options.json:
        print_json([found])
        return OK
    if found.get("dropped"):
        print(
            _visible(
                tr(
                    "dropped: {dropped} {found}", dropped=found["dropped"], found=found.get("detail") or ""
                ).rstrip()
            )
        )
    for side, tokens in found["sides"].items():
        print(f"{side}:")
        print("".join(_drawn(tokens, found["pictures"])))
    return OK


def _drawn(tokens: Sequence[Mapping[str, Any]], pictures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Tokens as text: what is learnt in brackets, a picture's run of tokens as one with its file."""
    for picture, run in groupby(tokens, key=lambda t: t["picture"]):
        if picture is None:
            yield from (f"[{_visible(t['text'])}]" if t["trained"] else _visible(t["text"]) for t in run)
        else:
            one, several = pictures[picture], list(run)
            size = f"{Path(one['path']).name}, {one['width']}x{one['height']}"
            yield f"<{_visible(several[0]['text'])} x {len(several)}: {_visible(size)}>"


def _visible(text: str) -> str:
    """Text for a terminal: control characters of the data are shown, not obeyed."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
