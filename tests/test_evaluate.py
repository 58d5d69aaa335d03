"""Versions of a model answer the same questions: row by row, none lost and none twice, and the figures are right."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tuner.config.config import load
from tuner.config.evaluation import EvaluateConfig
from tuner.config.inference import read_words
from tuner.config.knobs import ConfigError
from tuner.data.verbs import labelled
from tuner.evaluate.benchmarks import _plain
from tuner.evaluate.evaluate import _versions, evaluate
from tuner.evaluate.judge import Judge
from tuner.evaluate.likelihood import log_likelihoods, perplexity
from tuner.evaluate.peer_scores import available, peer_scores
from tuner.evaluate.predictions import FILE, Predictions
from tuner.evaluate.questions import Question
from tuner.evaluate.rewarded import completion
from tuner.jobs import resuming
from tuner.jobs.checking import of_evaluation
from tuner.jobs.live import Live, Outcome
from tuner.runs.run import Run
from tuner.tracking.evaluations import Measured, of_tags, results
from tuner.ui.evaluation import Row, _of_dataset, briefly, figures, marked

ROWS = 30


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        tiny.model(home / "model")
        tiny.data(home / "data", rows=ROWS)
        made = get_peft_model(
            AutoModelForCausalLM.from_pretrained(home / "model"), LoraConfig(r=4, target_modules="all-linear")
        )
        torch.manual_seed(3)
        for weight in made.parameters():
            if weight.requires_grad:
                weight.data += 0.1 * torch.randn_like(weight)
        made.save_pretrained(home / "adapter")
        yield home


def config_of(**changes: Any) -> EvaluateConfig:
    values = {
        "model_name_or_path": "model",
        "dataset": "chat",
        "versions": "base,adapter",
        "max_new_tokens": 12,
    }
    words = [f"--{name}={value}" for name, value in (values | changes).items()]
    return read_words(EvaluateConfig, words)[0]


def measured(config: EvaluateConfig, name: str) -> tuple[Run, Outcome]:
    run = Run(name)
    if not run.exists:
        run.create(config, name)
    return run, evaluate(config, Live(run))


def answers_in(run: Run, version: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "output" / version / FILE).read_text().splitlines()]


def test_every_version_answers_every_question(studio: Path) -> None:
    config = config_of()
    assert of_evaluation(config) == [] and load(config.plain()) == config
    run, outcome = measured(config, "both")
    found = results(run)
    assert found["rows"] == ROWS and [one["label"] for one in found["versions"]] == ["base", "adapter"]
    assert [file.name for file in outcome.files] == ["evaluation.json"]
    base, adapter = (answers_in(run, version) for version in ("base", "adapter"))
    assert [row["row"] for row in base] == list(range(ROWS)) == [row["row"] for row in adapter]
    assert {"prompt", "predict", "label"} <= set(base[0])
    assert [row["predict"] for row in base] != [row["predict"] for row in adapter]
    assert [row["predict"] for row in base] == plain_answers(studio, None, base)
    assert [row["predict"] for row in adapter] == plain_answers(studio, studio / "adapter", adapter)
    metrics = found["versions"][1]["metrics"]
    assert metrics["perplexity"] == pytest.approx(plain_perplexity(studio), rel=1e-4)
    assert 0 <= metrics["exact"] <= 100 and metrics["bleu-4"] >= 0
    assert "perplexity/adapter" in run.metrics()[0][-1]


def plain_model(studio: Path, adapter: Path | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(studio / "model")
    return (PeftModel.from_pretrained(model, str(adapter)) if adapter else model).eval()


def asked(studio: Path) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers as transformers' own chat template writes them."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(studio / "model")
    found = []
    for row in json.loads((studio / "data" / "chat.json").read_text()):
        said = [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["output"]},
        ]
        prompt = words.apply_chat_template(said[:1], add_generation_prompt=True, tokenize=False)
        whole = words.apply_chat_template(said, tokenize=False)
        ids = words(prompt, add_special_tokens=False)["input_ids"]
        found.append((ids, words(whole, add_special_tokens=False)["input_ids"][len(ids) :]))
    return found


def plain_answers(studio: Path, adapter: Path | None, rows: list[dict[str, Any]]) -> list[str]:
    """What transformers' own generate answers, one prompt after the other."""
    from transformers import AutoTokenizer

    words, model = AutoTokenizer.from_pretrained(studio / "model"), plain_model(studio, adapter)
    said = []
    for ids, _ in asked(studio):
        made = model.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0
        )
        said.append(words.decode(made[0, len(ids) :], skip_special_tokens=True).strip())
    return said


def plain_perplexity(studio: Path) -> float:
    model, total, tokens = plain_model(studio, studio / "adapter"), 0.0, 0
    for ids, answer in asked(studio):
        row = torch.tensor([ids + answer])
        labels = row.clone()
        labels[0, : len(ids)] = -100
        with torch.no_grad():
            total += float(model(input_ids=row, labels=labels).loss) * len(answer)
        tokens += len(answer)
    return math.exp(total / tokens)


def killed(run: Run, file: Path) -> None:
    """A worker of its own, killed among its answers."""
    worker = subprocess.Popen([sys.executable, "-m", "tuner.worker", run.id], stdout=subprocess.DEVNULL)
    while not file.is_file() or file.read_bytes().count(b"\n") < 5:
        assert worker.poll() is None
        time.sleep(0.005)
    worker.send_signal(signal.SIGKILL)
    worker.wait()


def cut_off(run: Run, file: Path) -> None:
    """The same here, by what nothing in an evaluation expects."""
    kept = Predictions.add

    def then_end(self: Predictions, number: int, said: str) -> None:
        kept(self, number, said)
        if len(self.rows) == 5:
            raise SystemExit

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Predictions, "add", then_end)
        evaluate(run.config(), Live(run))


@pytest.mark.parametrize("ended", [cut_off, pytest.param(killed, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_goes_on_without_a_row_lost_or_twice(
    studio: Path, ended: Callable[[Run, Path], None]
) -> None:
    slow = config_of(max_new_tokens=20, per_device_eval_batch_size=1, perplexity=False)
    config = config_of(max_new_tokens=20, per_device_eval_batch_size=16, perplexity=False)
    run = Run(ended.__name__)
    run.create(slow, "killed")
    file = run.folder / "output" / "base" / FILE
    ended(run, file)
    before = file.read_bytes().count(b"\n")
    assert 5 <= before < ROWS
    file.write_bytes(file.read_bytes() + b'{"row": 29, "prom')  # a line that was cut off
    assert resuming.goes_on(run)
    measured(config, run.id)
    whole, _ = measured(config, f"whole beside {run.id}")
    for version in ("base", "adapter"):
        assert answers_in(run, version) == answers_in(whole, version)
        assert [row["row"] for row in answers_in(run, version)] == list(range(ROWS))


def test_no_two_versions_share_a_folder() -> None:
    folders = [one.folder for one in _versions(["saves/one", "saves one", "saves:one", "base"])]
    assert folders == ["saves-one", "saves-one~2", "saves-one~3", "base"]


def test_a_version_that_was_taught_in_other_words_is_told(studio: Path) -> None:
    other = studio / "other"
    shutil.copytree(studio / "adapter", other)
    tiny.tokenizer(other)
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    run, _ = measured(config_of(versions=other, max_samples=1, perplexity=False), "otherwise")
    assert any("taught in a chat template of its own" in note for note in run.status().notes)
    run, _ = measured(config_of(versions="adapter", max_samples=1, perplexity=False), "alike")
    assert run.status().notes == []


def test_an_answer_that_is_marked_bad_is_not_expected(studio: Path) -> None:
    run, _ = measured(config_of(dataset="labelled", versions="base", perplexity=False), "thumbs")
    rows = json.loads((studio / "data" / "labelled.json").read_text())
    assert [row["label"] for row in answers_in(run, "base")] == [r["output"] for r in rows if r["kto_tag"]]
    assert results(run)["left_out"] == {"its answer is marked bad": sum(not r["kto_tag"] for r in rows)}


def test_metrics_behind_a_filter_are_kept() -> None:
    found = _plain(
        {"gsm8k": {"exact_match,strict-match": 0.5, "acc,none": 1, "acc_stderr,none": 0.1, "alias": "x"}}
    )
    assert found == {"gsm8k/exact_match-strict-match": 0.5, "gsm8k/acc": 1.0}


def test_answers_to_other_questions_are_not_taken_over(tmp_path: Path) -> None:
    one, other = (Question(text, "right", [1], [2], {}) for text in ("one", "other"))
    kept = Predictions(tmp_path, [one, other])
    kept.add(1, "said")
    assert kept.missing == [0]
    assert Predictions(tmp_path, [one, other]).missing == [0]
    assert Predictions(tmp_path, [other, one]).missing == [0, 1]


def test_an_answer_that_does_not_fit_is_counted_as_far_as_it_does(studio: Path) -> None:
    model = plain_model(studio, None)
    long = Question("", "", [5, 6, 7], [8, 9, 10], {})
    (whole, three), (part, one) = (log_likelihoods(model, [long], cutoff)[0] for cutoff in (100, 4))
    assert (three, one) == (3, 1) and whole < part < 0
    assert math.isnan(perplexity(log_likelihoods(model, [long], 3)))


def test_what_cannot_be_asked_is_said_before_anything_is_loaded(studio: Path) -> None:
    for changes, said in (
        ({"dataset": "text"}, "plain text"),
        ({"dataset": "cat"}, "is not in dataset_info.json"),
        ({"versions": "base,nothing"}, "nothing is no adapter's folder, no registered version"),
        ({"versions": "model@champion"}, "There is no adapter model"),
        ({"judge_url": "localhost:80"}, "is no address"),
        ({"model_name_or_path": "away"}, "no folder here"),
    ):
        assert said in " ".join(problem.sentence for problem in of_evaluation(config_of(**changes))), changes
    with pytest.raises(ConfigError, match=r"Nothing in chat can be asked \(30 rows: prompt too long\)"):
        measured(config_of(cutoff_len=4), "too-long")


@pytest.mark.skipif(not available(), reason="jieba, nltk or rouge-chinese is not installed")
def test_llama_factory_s_numbers_have_their_own_names() -> None:
    same = peer_scores(["the cat sat", "今天天气很好"], ["the cat sat", "今天天气很好"])
    assert same == {f"llamafactory/{name}": 100.0 for name in ("rouge-1", "rouge-2", "rouge-l", "bleu-4")}
    # By hand: of "abcde" against "abcdx" 4/5, 3/4, 2/3 and 1/2 of the runs of one to four letters are there.
    part = peer_scores(["abcde"], ["abcdx"])
    assert part["llamafactory/bleu-4"] == pytest.approx(
        100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, abs=1e-3
    )
    assert peer_scores([""], ["nothing"])["llamafactory/rouge-l"] == 0
    assert peer_scores([], []) == {}


class JudgeServer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        good = "Answer given:\ngood" in asked["messages"][0]["content"]
        said = {"choices": [{"message": {"content": "I give it 9/10." if good else "2"}}]}
        self.send_response(200 if self.headers["Authorization"] == "Bearer key" else 401)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_a_judge_marks_answers(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = HTTPServer(("127.0.0.1", 0), JudgeServer)
    Thread(target=server.serve_forever, daemon=True).start()
    judge = Judge(config_of(judge_url=f"http://127.0.0.1:{server.server_port}/v1", judge_model="any"))
    one = Question("asked", "expected", [1], [2], {})
    with pytest.raises(ConfigError, match="look at --judge_url, --judge_model and JUDGE_API_KEY"):
        judge.mark(one, "good")
    monkeypatch.setenv("JUDGE_API_KEY", "key")
    assert (judge.mark(one, "good"), judge.mark(one, "bad")) == (9, 2)
    server.shutdown()


def test_a_judge_s_key_is_shown_to_no_other_host(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(str(self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as other:
        Thread(target=other.serve_forever, daemon=True).start()

        class Leading(Other):
            def do_POST(self) -> None:
                self.send_response(302)
                self.send_header("Location", f"http://127.0.0.1:{other.server_port}/")
                self.end_headers()

        with HTTPServer(("127.0.0.1", 0), Leading) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setenv("JUDGE_API_KEY", "key")
            judge = Judge(config_of(judge_url=f"http://127.0.0.1:{server.server_port}/v1"))
            with pytest.raises(ConfigError, match="gave no answer"):
                judge.mark(Question("asked", "expected", [1], [2], {}), "good")
            server.shutdown()
        other.shutdown()
    assert asked == []


def test_what_was_measured_is_read_back_from_a_version() -> None:
    told = json.dumps({"run_id": "r", "rows": 3, "at": 2.0, "metrics": {"exact": 50}, "base": {"exact": 10}})
    newest, older = of_tags({"evaluation/b": told, "evaluation/a": "{}", "evaluation/c": "?", "other": told})
    assert (newest.dataset, newest.metrics["exact"], newest.base["exact"], older.dataset) == (
        "b",
        50,
        10,
        "a",
    )


def test_runs_are_held_against_each_other_on_the_data_that_both_were_measured_on() -> None:
    one, other = Measured("a", metrics={"exact": 50}), Measured("a", metrics={"exact": 60})
    both = Measured("b", metrics={"bleu-4": 1.0, "exact": 50.0}, base={"exact": 25.0})
    assert briefly([both, one]) == "Exact 50.0% (base 25.0%) on b" and briefly([]) == ""
    asked = Measured("c", metrics={"exact": 0.0, "reward": 1.5}, base={"exact": 0.0, "reward": 0.5})
    assert briefly([asked]) == "Reward 1.5 (base 0.5) on c"
    found = _of_dataset(
        "a", {"1": [one], "2": [other], "3": [Measured("b")]}, {"2": "two", "1": "one", "3": "three"}
    )
    assert [row["label"] for row in found] == ["two", "one"]
    [exact] = figures(found)
    assert (exact["two"], exact["one"]) == ("60.0%", "50.0%   ▼ worse by 10.0%")


def test_differences_are_marked_and_what_a_text_says_stays_text() -> None:
    assert marked("the red cat", "the blue cat") == "the :primary-background[red] cat"
    assert marked("*same* [x](http://a.b)", "*same* [x](http://a.b)").count("\\") >= 4
    row = Row(0, "p", "e", {"base": "yes", "one": "yes", "two": "no"})
    assert row.disagreement == 1 and Row(0, "p", "e", {"base": "yes", "one": "yes"}).disagreement == 0


TASK = """\
task: colours
dataset_path: json
dataset_kwargs:
  data_files: {file}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
doc_to_choice: "{{{{c}}}}"
metric_list:
  - metric: acc
"""


@pytest.mark.slow
def test_benchmarks_are_lm_eval_s_own_numbers(studio: Path, tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    rows = tmp_path / "rows.json"
    rows.write_text(
        "\n".join(
            json.dumps({"q": q, "c": [" one", " two"], "a": i % 2}) for i, q in enumerate(tiny.sentences(50))
        )
    )
    task = tmp_path / "colours.yaml"
    task.write_text(TASK.format(file=rows))
    run, _ = measured(config_of(dataset="", tasks=task), "benchmark")
    ours = [one["metrics"]["colours/acc"] for one in results(run)["versions"]]
    known = lm_eval.tasks.TaskManager(include_path=str(tmp_path))
    for adapter, accuracy in zip(("", f",peft={studio / 'adapter'}"), ours, strict=True):
        theirs = lm_eval.simple_evaluate(
            model="hf", model_args=f"pretrained={studio / 'model'},dtype=float32{adapter}", device="cpu",
            tasks=["colours"], task_manager=known, bootstrap_iters=0,
        )  # fmt: skip
        assert theirs["results"]["colours"]["acc,none"] == accuracy


def add_chats(studio: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """One more data set in the studio's catalog."""
    (studio / "data" / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    catalog = json.loads((studio / "data" / "dataset_info.json").read_text(encoding="utf-8"))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    sharegpt = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    catalog[name] = {"file_name": f"{name}.json", **sharegpt}
    (studio / "data" / "dataset_info.json").write_text(json.dumps(catalog), encoding="utf-8")


def test_rows_are_drawn_by_chances_of_their_own(studio: Path) -> None:
    """The same question six times gets more than one answer, and gets the same ones again."""
    turns = [{"role": "user", "content": "Say 1"}, {"role": "assistant", "content": "1"}]
    add_chats(studio, "again", [{"messages": turns}] * 6)
    said = []
    for name in ("drawn", "drawn again"):
        run, _ = measured(config_of(dataset="again", versions="base", do_sample="True"), name)
        said.append([row["predict"] for row in answers_in(run, "base")])
    assert len(set(said[0])) > 1 and said[0] == said[1]


def test_rewards_score_the_answers(studio: Path) -> None:
    """Each answer's reward is what its parts come to, and a row without an answer is asked too."""
    rows = [{"messages": [{"role": "user", "content": f"Say {n}"}]} for n in range(3)]
    rows.append({"messages": [*rows[0]["messages"], {"role": "assistant", "content": "0"}], "level": "."})
    add_chats(studio, "asked", rows)
    wanted = [
        {"length": {"most": 0, "slack": 24}},
        {"equals_label": {"weight": 2.0}},
        {"regex": {"column": "level", "weight": 0}},
        {"regex": {"column": "messages", "weight": 0}},
    ]
    config = config_of(dataset="asked", versions="base", reward_funcs=json.dumps(wanted))
    assert of_evaluation(config) == [] and load(config.plain()) == config
    assert labelled(["asked"], "data") == (4, 1)
    run, _ = measured(config, "rewarded")
    said = answers_in(run, "base")
    assert [row["rewards"]["equals_label"] is None for row in said] == [True, True, True, False]
    assert [row["rewards"]["regex"] is None for row in said] == [True, True, True, False]
    for row in said:
        parts = row["rewards"]
        assert set(parts) == {"length", "equals_label", "regex", "regex_2"}
        assert parts["regex_2"] is None, "what a row asks is none of its other columns, as in training"
        assert row["reward"] == pytest.approx(parts["length"] + 2 * (parts["equals_label"] or 0))
    metrics = results(run)["versions"][0]["metrics"]
    assert metrics["reward"] == pytest.approx(sum(row["reward"] for row in said) / 4)
    assert metrics["rewards/length/std"] >= 0 and "perplexity" in metrics
    wrong = of_evaluation(config_of(reward_funcs="contians"))
    assert "did you mean contains?" in wrong[0].sentence


def test_an_answer_has_the_length_that_it_has_in_training() -> None:
    """There the token that ended it counts, and here only the words are kept."""
    asked = Question("q", "", [1], [], {"level": 3, "messages": []}, columns={"level": 3})
    whole, cut = (completion(asked, "a b", size, 12) for size in (11, 12))
    assert (whole.tokens, whole.finished, cut.tokens, cut.finished) == (12, True, 12, False)
    assert whole.columns == {"level": 3}
    assert completion(asked, "a b", 2, 12, "<user>q<assistant>").whole == "<user>q<assistant>a b"
