"""Languages: each text is asked for where it is said, no catalogue lacks one, and nothing of a page depends on it."""

from __future__ import annotations

import json
import re
import shutil
import string
import tarfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
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
from tuner.text import lookup, recognise
from tuner.text.lookup import Catalogue, offered, speaking, tr, trn
from tuner.text.message import message, plain, render
from tuner.ui import state

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
    ("new_run", {"start": "starter-dpo", "level": "Advanced"}),
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
    monkeypatch.setattr("streamlit.query_params", {"view": said})
    monkeypatch.setattr("streamlit.session_state", kept)
    with speaking(code):
        state.reword("view", ["Preview", "Report"], tr)
    assert kept.get("view") == shown
