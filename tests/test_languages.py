"""Languages: each text is asked for where it is said, no catalogue lacks one, and nothing of a page depends on it."""

from __future__ import annotations

import ast
import gzip
import json
import re
import shutil
import string
import tarfile
import threading
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po
from streamlit.testing.v1 import AppTest
from test_old_studio import DIVERGED, FILE, FINISHED, KILLED, moved

from tools import catalogues
from tuner import cli
from tuner.cli.knob_help import knob_help
from tuner.config.config import form_sections
from tuner.config.knobs import ConfigError, Problem
from tuner.data.files import records
from tuner.export.gguf import shapes
from tuner.models.hub import resolve_model
from tuner.runs.facts import facts
from tuner.runs.reasons import from_exception
from tuner.text import lookup, recognise
from tuner.text.lookup import Catalogue, joined, offered, speaking, tr, trn
from tuner.text.message import message, plain, render, to_plain
from tuner.text.message import of as message_of
from tuner.tracking.rows import RunFilter
from tuner.tracking.runs import list_runs
from tuner.ui import evaluating, state, tables

pytestmark = pytest.mark.usefixtures("libraries_looked_through_once")
ROOT = Path(__file__).parents[1]
PSEUDO = "xx"


class Marked(Catalogue):
    """A language in which every text stands in brackets: what is outside of them was never asked for."""

    def __init__(self) -> None:
        super().__init__({}, {}, lambda number: 0)
        self.asked: set[str] = set()

    def text(self, english: str) -> str:
        self.asked.add(english)
        return f"⟦{english}⟧" if english.strip() else english

    def plural(self, one: str, many: str, number: int) -> str:
        return f"⟦{one if number == 1 else many}⟧"


@pytest.fixture(autouse=True)
def _english_afterwards() -> Iterator[None]:
    yield
    lookup.speak("")
    lookup.speak_everywhere()


@pytest.fixture
def pseudo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Marked]:
    marked = Marked()
    monkeypatch.setitem(lookup._catalogues, PSEUDO, marked)
    monkeypatch.setitem(lookup.LANGUAGES, PSEUDO, "⟦⟧")
    with speaking(PSEUDO):
        yield marked


# --- every text is asked for ---------------------------------------------------------------------------------------

SAID = (
    "label",
    "help",
    "body",
    "placeholder",
    "caption",
    "text",
    "options",
    "title",
    "name",
    "value",
    "data",
    "markup",
)
"""Fields of what Streamlit draws that hold words for a person."""
QUIET = re.compile(
    r":material/\w+:|:[a-z-]+\[|`[^`]*`|https?://\S+|&\w+;|</?\w[^>]*>|[\w.\\-]*[/_@.=\\][\w.\\/@=-]*|--?\w+|\\[^\w\s]|\{[^}]*\}"
)
"""What is no word: icons, colours, code, addresses, tags, paths, names with signs in them, flags."""
NAMES = frozenset(
    [
        "tuner",
        "starter",
        "identity",
        "alpaca",
        "dpo",
        "sft",
        "pt",
        "rm",
        "kto",
        "grpo",
        "rloo",
        "ppo",
        "lora",
        "oft",
        "freeze",
        "full",
        "auto",
        "packed",
        "trl",
        "bf16",
        "fp16",
        "sdpa",
        "YAML",
        "Python",
        "MLflow",
        "CSV",
        "MLflow",
        "CPU",
        "GPU",
        "RAM",
        "KL",
        "MiB",
        "GiB",
        "KiB",
        "TiB",
        "min",
        "True",
        "False",
        "BLEU",
        "ROUGE",
        "JSON",
        "Trackio",
        "English",
    ]
)


def left(text: str) -> str:
    """What of a text stands outside of all brackets and is a word."""
    depth, outside = 0, []
    for sign in text:
        depth += (sign == "⟦") - (sign == "⟧")
        outside.append(sign if depth == 0 and sign != "⟧" else " ")
    rest = QUIET.sub(" ", "".join(outside))
    return " ".join(w for w in re.findall(r"[A-Za-z][A-Za-z'-]+", rest) if w not in NAMES)


def words(proto: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every field of a message that may hold words, with its name."""
    for field, value in proto.ListFields():
        values = value if field.is_repeated else [value]
        for one in values:
            if field.message_type is not None and not field.message_type.GetOptions().map_entry:
                yield from words(one, f"{at}.{field.name}")
            elif isinstance(one, str) and field.name in SAID:
                yield f"{at}.{field.name}", one


def drawn(app: AppTest) -> Iterator[tuple[str, str]]:
    """What a page says: of each element its kind with the field, and the text."""
    for block in (app.main, app.sidebar):
        for one in block:
            if (proto := getattr(one, "proto", None)) is not None and one.type not in ("code", "json"):
                yield from ((f"{one.type}{field}", said) for field, said in words(proto))


@pytest.fixture
def studio(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs that finished and failed, an adapter, a data set."""
    with tarfile.open(FILE) as tar:
        tar.extractall(home, filter="data")
    moved(home)
    for path in (ROOT / "data").glob("starter*"):
        shutil.copytree(path, home / "data" / path.name) if path.is_dir() else None
    monkeypatch.chdir(ROOT)
    return home


def opened(page: str, session: AppTest | None = None, **query: str | list[str]) -> AppTest:
    """A page of the studio, in a session that is open already or in one of its own."""
    app = session or AppTest.from_file(str(ROOT / "app.py"), default_timeout=120).run()
    app.switch_page(f"pages/{page}.py")
    app.query_params.clear()
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    assert not [m.value for m in app.markdown if "could not be drawn" in m.value]
    return app


def spoken_by(home: Path, language: str) -> None:
    """The language that whoever sits there chose before."""
    (home / "mlruns" / "people").mkdir(parents=True, exist_ok=True)
    (home / "mlruns" / "people" / "all.json").write_text(f'{{"language": "{language}"}}')


PAGES: tuple[tuple[str, dict[str, str | list[str]]], ...] = (
    ("home", {}),
    ("datasets", {"dataset": "pairs"}),
    ("datasets", {"dataset": "pairs", "view": "What the model sees"}),
    (
        "new_run",
        {"start": "starter-dpo", "level": "Advanced", "open": [one.__name__ for one in form_sections()]},
    ),
    ("runs", {"run": FINISHED}),
    ("runs", {"run": FINISHED, "tab": "Config"}),
    ("runs", {"run": KILLED, "tab": "Details"}),
    ("runs", {"run": DIVERGED, "tab": "Checkpoints"}),
    ("compare", {"run": [FINISHED, DIVERGED]}),
    ("history", {}),
    ("adapters", {}),
    ("chat", {}),
    ("decide", {}),
    ("arena", {}),
    ("evaluate", {}),
    ("settings", {}),
    ("decide", {}),
)
OF_PEOPLE = (  # what people and models wrote, in the studio of the test
    "model pairs chat text left alone killed diverges purpose baseline board champion candidate data base the first "
    "one sea old blue dog green big sun bird near cold cat warm red three far moon two new warmcold step or"
)
WRITTEN_DOWN = (
    "Resume from the last checkpoint",
    "Learning rate 1e+29",
    "The worker was killed by signal",
    "The loss became NaN or infinite",
    "Engine: TRL, because lora",
)
"""What an older studio wrote into a run's folder as sentences."""


def written_down(text: str) -> bool:
    return any(one in text.replace("\\", "") for one in WRITTEN_DOWN)


def not_asked(app: AppTest, options: bool = False) -> set[tuple[str, str]]:
    """What stands on a page in English though the language is the pseudo one: fields with words, by element."""
    found = set()
    for field, said in [*drawn(app), *framed(app)]:
        rest = [word for word in left(said).split() if word not in OF_PEOPLE.split()]
        if (
            rest
            and not written_down(said)
            and (options or not field.startswith(("selectbox.options", "multiselect.options")))
        ):
            found.add((field, said))
    return found


def framed(app: AppTest) -> Iterator[tuple[str, str]]:
    """The headings of tables, and the names and titles in charts."""
    for one in app.main:
        if one.type == "dataframe":
            config = json.loads(one.proto.columns or "{}")
            yield from (
                ("frame.heading", config.get(name, {}).get("label", name)) for name in one.value.columns
            )
        elif one.type == "bidi_component" and one.proto.component_name == "tuner-chart":
            data = json.loads(one.proto.json)
            figure = json.loads(data["figure"])
            yield "chart.alt", data["alt"]
            yield from (("chart.line", line.get("name") or "") for line in figure["data"])
            yield "chart.axis", figure["layout"].get("xaxis", {}).get("title", {}).get("text", "")
        elif one.type == "bidi_component" and one.proto.component_name == "tuner-table":
            data = json.loads(one.proto.json)
            yield "table.label", data["label"]
            yield from (("table.heading", column["name"]) for column in data["columns"])


def test_every_word_of_every_page_is_asked_for(studio: Path, pseudo: Marked, template: Catalog) -> None:
    spoken_by(studio, PSEUDO)
    session = None
    for page, query in PAGES:
        said = {
            name: f"⟦{value}⟧" if name in ("view", "tab", "level") else value for name, value in query.items()
        }
        session = opened(page, session, **said)
        assert not not_asked(session), page
    once = {text for text in pseudo.asked - ids(template) if "⟦" not in text and " " in text}
    metrics = {"logps", "num", "score", "system"}
    assert {text for text in once if text.lower().split()[0] not in metrics} <= {
        "left alone",
        "asking held-out questions",
    }, "asked, and not taken up"


def test_every_word_of_the_shell_is_asked_for(
    home: Path, pseudo: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_LANG", PSEUDO)
    for verb in cli.VERBS:
        if verb in ("webui", "train", "submit", "export", "evaluate", "api"):
            continue
        with pytest.raises(SystemExit) if verb != "chat" else nullcontext():
            cli.main([verb, "--help"])
        told = capsys.readouterr().out
        assert "⟦" in told, verb
    assert cli.main(["trian"]) == 2 and "⟦tuner has no verb" in capsys.readouterr().err
    assert (
        cli.main(["train", "--lora_rnak", "8"]) == 2
        and "⟦--lora_rnak is not known" in capsys.readouterr().err
    )
    told = [
        line for line in knob_help("train").splitlines() if line and not line.startswith(("  --", "tuner"))
    ]
    assert not [line for line in told if left(line) and ":" not in line]


@pytest.mark.parametrize(
    "words",
    [
        ["disk"],
        ["clean", "--keep", "none"],
        ["clean", "--keep", "best,last", "--yes"],
        ["data", "report", "starter_defects", "--model", "data/starter"],
        ["stop", FINISHED],
    ],
    ids=" ".join,
)
def test_every_word_that_a_verb_prints_is_asked_for(
    studio: Path,
    pseudo: Marked,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    monkeypatch.setenv("TUNER_LANG", PSEUDO)
    shutil.copy(ROOT / "data" / "dataset_info.json", studio / "data")
    for file in (ROOT / "data").glob("starter_defects*.json"):
        shutil.copy(file, studio / "data")
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    told = re.sub(r"\b[0-9a-f]{32}\b", "", out + err)
    lines = [line.removeprefix("tuner: ").partition("⟧: ")[0] for line in told.splitlines()]
    assert lines and not [
        line for line in lines if set(left(line).split()) - {*OF_PEOPLE.split(), "finished"}
    ]


def test_every_knob_is_told_in_one_language(pseudo: Marked) -> None:
    shown = [line for line in knob_help("train").splitlines() if line.startswith("  --")]
    assert len(shown) > 50 and not [line for line in shown if left(line.replace("⟦", " ⟦"))]


# --- words within sentences ----------------------------------------------------------------------------------------

Node = ast.Call | ast.ClassDef | ast.FunctionDef


@cache
def nodes() -> list[tuple[str, Node]]:
    """The calls, classes and functions of the studio, each with its file's name."""
    files = [*sorted((ROOT / "tuner").rglob("*.py")), *sorted((ROOT / "pages").glob("*.py"))]
    trees = ((file.name, ast.parse(file.read_text(encoding="utf-8"))) for file in files)
    return [(name, node) for name, tree in trees for node in ast.walk(tree) if isinstance(node, Node)]


API = "ApiError"
"""What a server tells programs, in English."""


def called(node: Node) -> str:
    return (
        (getattr(node.func, "id", "") or getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
    )


def said_as_it_is(node: ast.AST) -> Iterator[str]:
    """The texts of an expression that no function looks up: of a choice and of a sum every part."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else " " for part in node.values)
    for part in (
        [node.body, node.orelse] if isinstance(node, ast.IfExp)
        else node.values if isinstance(node, ast.BoolOp)
        else [node.left, node.right] if isinstance(node, ast.BinOp)
        else []
    ):  # fmt: skip
        yield from said_as_it_is(part)


def english(node: ast.AST) -> list[str]:
    """The words in it, without flags, code and names with signs in them."""
    return [word for text in said_as_it_is(node) for word in left(text).split()]


def test_no_word_within_a_sentence_is_handed_over_in_english() -> None:
    found = []
    for file, node in nodes():
        if called(node) in ("tr", "trn", "message"):
            found += [(file, node.lineno, w) for k in node.keywords for w in english(k.value)]
        elif called(node) == "join" and isinstance(node.func, ast.Attribute):
            joint = node.func.value
            found += [(file, node.lineno, w) for w in english(joint) if w in ("and", "or")]
    files_names = {"safetensors"}
    assert not [one for one in found if one[2] not in files_names]


@cache
def errors() -> set[str]:
    """The errors of the studio's own, and the functions that make one."""
    own = {"Problem"}
    for _, node in nodes():
        if isinstance(node, ast.ClassDef) and node.name != API:
            own |= {node.name for b in node.bases if ast.unparse(b).endswith(("Error", "Exception"))}
    functions = [n for _, n in nodes() if isinstance(n, ast.FunctionDef)]
    return own | {n.name for n in functions if n.returns is not None and ast.unparse(n.returns) in own}


def test_no_error_of_the_studio_is_a_sentence_in_english() -> None:
    """Each is asked for by its text, so that whoever shows it finds that again in another language."""
    own = errors() | {"require"}
    assert {"Problem", "ModelError", "Refused", "refuse"} <= own
    raised = [
        (file, node.lineno, said)
        for file, node in nodes()
        if isinstance(node, ast.Call) and called(node) in own
        for given in (*node.args, *(k.value for k in node.keywords))
        if len(said := english(given)) > 1
    ]
    assert not raised


# --- what is chosen ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("zh-Hans-CN", "zh_CN"),
        ("zh_CN.UTF-8", "zh_CN"),
        ("zh-TW", "zh_CN"),
        ("de_DE", "en"),
        ("C.UTF-8", "en"),
        ("", "en"),
        ("en-GB", "en"),
    ],
)
def test_browsers_and_shells_name_languages_in_their_own_ways(
    wanted: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lookup.LANGUAGES, "zh_CN", "简体中文")
    assert offered([wanted]) == found


def test_tuner_lang_goes_before_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lookup.LANGUAGES, "zh_CN", "简体中文")
    for name in ("TUNER_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    assert lookup.of_environment() == "en"
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert lookup.of_environment() == "zh_CN"
    monkeypatch.setenv("TUNER_LANG", "en")
    assert lookup.of_environment() == "en"


def test_each_thread_speaks_its_own_language(pseudo: None) -> None:
    heard: list[str] = []
    other = threading.Thread(target=lambda: heard.append(tr("Runs")))
    other.start()
    other.join()
    assert (tr("Runs"), heard) == ("⟦Runs⟧", ["Runs"])


def test_a_message_is_a_sentence_of_the_moment(pseudo: None) -> None:
    said = message("stopped", step=3)
    assert render(said) == "⟦Stopped at step 3; Resume continues from there.⟧"
    with speaking("en"):
        assert render(said) == "Stopped at step 3; Resume continues from there."


def test_numbers_choose_the_form(pseudo: None) -> None:
    assert trn("{number} run", "{number} runs", 2) == "⟦2 runs⟧"
    with speaking("en"):
        assert [trn("{number} run", "{number} runs", n) for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


FORM = f"""
import runpy
from tuner.ui import languages
languages.begin()
languages.switch()
runpy.run_path({str(ROOT / "pages" / "new_run.py")!r})
"""


def test_values_survive_a_switch_in_the_middle_of_a_form(studio: Path, pseudo: None) -> None:
    """The form with the switch above it: app.py has that in the sidebar, where AppTest does not look."""
    spoken_by(studio, "en")
    lookup.speak("en")  # AppTest says here, outside of the page, what a browser would send
    app = AppTest.from_string(FORM, default_timeout=120)
    app.query_params["start"] = "starter-dpo"
    app.run()
    rank = next(str(one.key) for one in app.number_input if "lora_rank" in str(one.key))
    app.number_input(rank).set_value(24).run()
    app.run()  # a touched section is drawn alone, and AppTest knows only what was drawn last
    schedule = next(str(one.key) for one in app.selectbox if "lr_scheduler_type" in str(one.key))
    app.selectbox(schedule).set_value("linear").run()
    app.run()
    app.segmented_control(key="level").set_value("Advanced").run()
    app.run()
    app.selectbox(key="language").set_value(PSEUDO).run()
    assert "⟦New run⟧" in [one.value for one in app.title]
    assert (app.number_input(rank).value, app.selectbox(schedule).value) == (24, "linear")
    assert app.segmented_control(key="level").value == "Advanced"
    assert "⟦Home⟧" in [one.value for one in opened("home").title], "kept for the next session"


# --- catalogues ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template() -> Catalog:
    return catalogues.template()


def ids(catalogue: Iterable[Any]) -> set[Any]:
    return {entry.id for entry in catalogue if entry.id}


def test_the_template_has_every_text(template: Catalog) -> None:
    with catalogues.TEMPLATE.open("rb") as file:
        assert ids(read_po(file)) == ids(template), "run `python -m tools.catalogues`"


def fields(text: str) -> list[str]:
    """The fields of a text with their formats, and the parts of a message that may be left out."""
    parsed = string.Formatter().parse(text)
    return sorted(f"{name}!{conversion}:{spec}" for _, name, spec, conversion in parsed if name)


def broken_bold(text: str) -> bool:
    """Whether Markdown would show a pair of ** as it is: it wants no letter beside it where a sign is within."""
    parts = text.split("**")
    return any(
        (bold and bold[-1] in "，。：；？！）" and (after[:1].isalnum() or after[:1] == "{"))
        or (bold and bold[0] in "（“" and before[-1:].isalnum())
        for before, bold, after in zip(parts[::2], parts[1::2], parts[2::2], strict=False)
    )


@pytest.mark.parametrize("file", catalogues.catalogues(), ids=lambda file: file.parents[1].name)
def test_a_catalogue_says_all_and_keeps_the_fields(file: Path, template: Catalog) -> None:
    with file.open("rb") as opened_file:
        known = read_po(opened_file, locale=file.parents[1].name)
    assert ids(known) == ids(template) and not known.obsolete, "run `python -m tools.catalogues`"
    wrong, empty = [], []
    for entry in known:
        said = [entry.string] if isinstance(entry.string, str) else list(entry.string or ())
        if not entry.id:
            continue
        if not all(said):
            empty.append(entry.id)
            continue
        asked = entry.id if isinstance(entry.id, str) else entry.id[-1]
        formatted = "python-brace-format" in entry.flags
        wrong += [(asked, one) for one in said if broken_bold(one)]
        wrong += [(asked, one) for one in said if formatted and fields(one) != fields(asked)]
        wrong += [
            (asked, one)
            for one in said
            if bool(re.findall(r"%\(\w+\)|%[srd]", asked)) != bool(re.findall(r"%\(\w+\)|%[srd]", one))
        ]
    assert not wrong
    if file.parents[1].name in lookup.LANGUAGES:
        assert not empty
    assert lookup.read(file).text("Runs")


def sentences(english: set[str]) -> list[str]:
    """Those of the texts that nobody writes by chance: of three words and more, as far as their first field."""
    found = (text.partition("{")[0].strip() for text in english)
    return sorted({text for text in found if len(text.split()) > 2 and "`" not in text and "--" not in text})


FIRST = "zh_CN"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == FIRST else pytest.mark.slow)
        for name in lookup.LANGUAGES
        if name != "en"
    ],
)
def test_no_page_says_in_english_what_a_language_has(studio: Path, name: str) -> None:
    spoken_by(studio, name)
    lookup.speak(name)  # AppTest says here, outside of the page, what a browser would send
    known = lookup.catalogue(name)
    english = sentences(set(known.texts) | set(known.plurals))
    session = None
    for page, query in PAGES:
        said = {
            key: known.text(str(value)) if key in ("view", "tab", "level") else value
            for key, value in query.items()
        }
        session = app = opened(page, session, **said)
        told = [text for _, text in [*drawn(app), *framed(app)] if not written_down(text)]
        plain = [text.replace("\\", "") for text in told]
        assert not [(text, one) for text in english for one in plain if text in one], page


def test_a_sentence_that_was_kept_in_english_is_said_in_another_language() -> None:
    killed = "The worker was killed by signal 9 (SIGKILL) at step 6. checkpoint-3 is kept."
    foreign = "RuntimeError: size mismatch at dimension 1 of {x} [2]"
    with speaking("zh_CN"):
        assert render(plain(killed)) == "工作进程在第 6 步被 signal 9 (SIGKILL) 终止。已保留 checkpoint-3。"
        assert (
            render(plain("The data set a is not in dataset_info.json; did you mean b?"))
            == "dataset_info.json 中没有数据集 a；您是不是想输入 b？"
        )
        assert render(plain(foreign)) == foreign
    assert render(plain(killed)) == killed


def test_an_error_that_a_worker_kept_is_said_in_another_language(tmp_path: Path) -> None:
    """What models/ refuses, and two refusals at once: a run's folder has them in English."""
    with pytest.raises(ConfigError) as away:
        resolve_model(str(tmp_path / "gone"))
    both = ConfigError([*away.value.problems, Problem("nproc_per_node", NOT_SO_MANY)])
    kept = message_of(json.loads(json.dumps(to_plain(from_exception(both, {}).cause))))
    assert str(kept) == f"{away.value} {NOT_SO_MANY}"
    with speaking("zh_CN"):
        assert str(kept) == (
            f"没有文件夹 {tmp_path}/gone：请检查路径，或给出 Hub 上的 id，例如 Qwen/Qwen2.5-0.5B。"
            "--nproc_per_node 4 需要同样多的 GPU，而此运行只能看到 2 个。"
        )


NOT_SO_MANY = "--nproc_per_node 4 needs as many GPUs, and this run sees 2."


def test_a_kept_sentence_that_begins_with_its_file_is_said_in_another_language(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(gzip.compress(b"[]"))
    with pytest.raises(ConfigError) as refused:
        next(records(tmp_path / "rows.json"))
    kept = from_exception(refused.value, {}).cause
    assert str(kept) == "rows.json is compressed; unpack it first."
    for language, said in {
        "zh_CN": "rows.json 是压缩文件；请先解压。",
        "ru": "rows.json — сжатый файл; сначала распакуйте.",
    }.items():
        with speaking(language):
            assert str(kept) == said


def test_a_reason_within_a_kept_sentence_is_said_in_that_language_too() -> None:
    refused = shapes.refuse("its tokenizer is of the kind WordPiece, and only BPE is known")
    kept = from_exception(refused, {}).cause
    with speaking("ru"):
        assert str(kept) == (
            "Эту модель нельзя записать как GGUF: её токенизатор вида WordPiece, а известен только BPE; "
            "используйте --export_format merged."
        )


def test_a_recorded_machine_and_a_state_are_told_in_the_language_of_the_page(studio: Path) -> None:
    rows = [
        replace(row, facts=dict(row.facts) | {"hardware": MACHINE})
        for row in list_runs(RunFilter(states=("finished",)), 1, 1).items
    ]
    with speaking("zh_CN"):
        (told,) = tables.costs(rows, {row.id: row.name for row in rows})
        shown = evaluating.table(rows)
    assert [row["State"] for row in shown.values()] == [told["State"]] == ["已完成"]
    assert told["Machine"] == "无 GPU；2 个 CPU 核心，8 GiB 内存"
    assert facts()["hardware"].endswith("GiB memory")


MACHINE = "no GPU; 2 CPU cores, 8 GiB memory"


@pytest.mark.parametrize("several", [["a"], ["a", "b"], ["a", "b", "c"]], ids=len)
def test_several_things_are_one_in_each_language(several: list[str]) -> None:
    said = {"zh_CN": ["a", "a 和 b", "a, b 和 c"], "en": ["a", "a and b", "a, b and c"]}
    for language, found in said.items():
        with speaking(language):
            assert joined(several) == found[len(several) - 1]


def test_russian_is_drawn_in_the_faces_that_ship() -> None:
    """Every sign of its texts that is a letter is in a face of each family, and no face is large."""
    faces = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))["theme"][
        "fontFaces"
    ]
    letters = {sign for text in lookup.catalogue("ru").texts.values() for sign in text if sign.isalpha()}
    drawn_by: dict[str, set[str]] = {"Inter": set(), "JetBrains Mono": set()}
    for face in faces:
        file = ROOT / face["url"].removeprefix("app/")
        assert file.read_bytes()[:4] == b"wOF2" and file.stat().st_size < 60_000
        bounds = [part.strip().removeprefix("U+").split("-") for part in face["unicodeRange"].split(",")]
        drawn_by[face["family"]] |= {
            s for s in letters for b in bounds if int(b[0], 16) <= ord(s) <= int(b[-1], 16)
        }
    assert "ж" in letters and all(letters <= {*drawn, "π", "σ"} for drawn in drawn_by.values())


def test_every_text_is_recognised_as_itself() -> None:
    for english, pattern, is_message in recognise._patterns(lookup.catalogue("zh_CN")):
        if not is_message and not re.search(r"\{\w*[^\w}:!]|\{\{", english):
            said = re.sub(r"\{\w+[^}]*\}", "x7", english)
            assert pattern.fullmatch(said), english
            found = recognise.recognised(said, "zh_CN")
            assert found is not None and re.sub(r"\{\w+[^}]*\}", "x7", found.english) == said


@pytest.mark.parametrize(
    ("code", "said", "shown"),
    [("zh_CN", "Report", "报告"), ("en", "报告", "Report"), ("en", "Report", None), ("en", "unheard", None)],
)
def test_a_link_from_a_page_in_another_language_opens_the_same(
    monkeypatch: pytest.MonkeyPatch, code: str, said: str, shown: str | None
) -> None:
    kept: dict[str, str] = {}
    monkeypatch.setattr(state, "asked_all", lambda name: [said])
    monkeypatch.setattr("streamlit.session_state", kept)
    with speaking(code):
        state.reword("view", ["Preview", "Report"], tr)
    assert kept.get("view") == shown


def test_filters_and_axes_of_a_link_in_another_language_are_obeyed(studio: Path) -> None:
    chinese, russian = lookup.catalogue("zh_CN"), lookup.catalogue("ru")
    app = opened("history", state=[chinese.text("Failed"), chinese.text("Finished")])
    assert app.multiselect(key="state").value == ["failed", "finished"]
    app = opened("runs", app, run=FINISHED, axis=russian.text("Epoch"), smoothing=russian.text("Strong"))
    chosen = {one.key: one.value for one in app.get("button_group")}
    assert (chosen["axis"], chosen["smoothing"]) == ("Epoch", "Strong")
