"""The client of a model's server, against a socket that says what servers say: whole, in pieces, wrong, and too little."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest

from tuner.chats import completions
from tuner.chats.completions import Completion, Stopped, Unanswered


class Place(NamedTuple):
    url: str
    key: str = ""


Answer = Callable[[BaseHTTPRequestHandler], None]


class Scripted:
    """A server that answers by a script and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answer: Answer = lambda _: None
        self.gone = threading.Event()
        outer = self

        class Wire(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append(json.loads(body) | {"path": self.path})
                outer.keys.append(self.headers.get("Authorization"))
                outer.answer(self)

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Wire)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.place = Place(f"http://127.0.0.1:{self.server.server_port}")


@pytest.fixture
def server() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.server.shutdown()
    made.server.server_close()


def begin(wire: BaseHTTPRequestHandler, status: int = 200, **headers: str) -> None:
    wire.send_response(status)
    for name, value in {
        "Content-Type": "text/event-stream",
        "Transfer-Encoding": "chunked",
        **headers,
    }.items():
        wire.send_header(name.replace("_", "-"), value)
    wire.end_headers()


def send(wire: BaseHTTPRequestHandler, text: str) -> None:
    data = text.encode()
    wire.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    wire.wfile.flush()


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}], **more})}\n\n"


def says(*lines: str, whole: bool = True) -> Answer:
    def answer(wire: BaseHTTPRequestHandler) -> None:
        begin(wire)
        for line in lines:
            send(wire, line)
        wire.wfile.write(b"0\r\n\r\n" if whole else b"")
        wire.close_connection = True

    return answer


def refuses(status: int, body: dict[str, Any] | bytes, **headers: str) -> Answer:
    def answer(wire: BaseHTTPRequestHandler) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        wire.send_response(status)
        for name, value in {"Content_Length": str(len(data)), **headers}.items():
            wire.send_header(name.replace("_", "-"), value)
        wire.end_headers()
        wire.wfile.write(data)

    return answer


def test_an_answer_comes_in_pieces_with_all_that_belongs_to_it(server: Scripted) -> None:
    server.answer = says(
        ": a comment\n\n",
        chunk({"role": "assistant", "content": ""}, system_fingerprint="abc"),
        chunk({"content": "Gruß "}) + chunk({"content": "你好"}),
        chunk({"reasoning_content": "hm"}),
        chunk({"tool_calls": [{"index": 0, "id": "1", "function": {"name": "add", "arguments": ""}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}),
        chunk({}, "stop"),
        'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\n',
        "data: [DONE]\n\n",
    )
    place = Place(f"{server.place.url}/v1", "secret")
    pieces = list(Completion(place, {"model": "m", "messages": [], "seed": 3}))
    assert "".join(piece.text for piece in pieces) == "Gruß 你好"
    assert "".join(piece.thoughts for piece in pieces) == "hm"
    assert [piece.calls for piece in pieces if piece.calls] == [{0: ("add", "")}, {0: ("", '{"a":')}]
    assert (pieces[0].checksum, pieces[-1].tokens, pieces[-2].finish) == ("abc", 7, "stop")
    (asked,) = server.asked
    assert (asked["path"], asked["stream"], asked["seed"]) == ("/v1/chat/completions", True, 3)
    assert asked["stream_options"] == {"include_usage": True} and server.keys == ["Bearer secret"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refuses(400, {"error": {"message": "temperature must be 0 or more", "param": "temperature"}}),
         "temperature must be 0 or more."),
        (refuses(404, {"error": {"message": "There is no model x."}}), "There is no model x."),
        (refuses(429, {"error": {"message": "busy"}}, Retry_After="7"),
         "The server is busy; try again in 7 seconds."),
        (refuses(401, {}), "The server does not take the studio's key; stop it and start it again."),
        (refuses(500, b"<html>"), "The server refused with status 500; its run's log says why."),
        (says(chunk({"content": "a"}), 'data: {"error": {"message": "out of memory"}}\n\n'), "out of memory."),
        (says("data: {broken\n\n"), "The server's answer cannot be read; look at its run's log."),
        (says(chunk({"content": "a"})),
         "The server stopped during the answer; start it again."),
        (says(chunk({"content": "a"}), whole=False),
         "The server stopped during the answer; start it again."),
    ],
)  # fmt: skip
def test_every_failure_is_one_sentence(server: Scripted, answer: Answer, said: str) -> None:
    server.answer = answer
    with pytest.raises(Unanswered) as raised:
        list(Completion(server.place, {}))
    assert str(raised.value) == said


def test_a_server_that_is_not_there_or_silent_is_told(server: Scripted) -> None:
    server.answer = lambda wire: (begin(wire), server.gone.wait(10))  # type: ignore[assignment, func-returns-value]
    with pytest.raises(Unanswered, match="said nothing for 0 s"):
        list(Completion(server.place, {}, silent=0.2))
    server.gone.set()
    with pytest.raises(Unanswered, match="does not answer; start it again"):
        list(Completion(Place("http://127.0.0.1:9"), {}))


def endless(server: Scripted) -> Answer:
    """An answer that goes on until nobody listens."""

    def answer(wire: BaseHTTPRequestHandler) -> None:
        begin(wire)
        try:
            while True:
                send(wire, chunk({"content": "x"}))
                time.sleep(0.01)
        except OSError:
            server.gone.set()
        wire.close_connection = True

    return answer


def test_stopping_closes_the_request_from_any_thread(server: Scripted) -> None:
    server.answer = endless(server)
    completion, read = Completion(server.place, {}), []
    timer = threading.Timer(0.3, completion.stop)
    timer.start()
    with pytest.raises(Stopped):
        read.extend(piece.text for piece in completion)
    assert server.gone.wait(2), "the server hears of it"


def test_a_silent_answer_is_stopped_too_and_one_not_begun_never_asks(server: Scripted) -> None:
    server.answer = lambda wire: (begin(wire), server.gone.wait(10))  # type: ignore[assignment, func-returns-value]
    completion = Completion(server.place, {})
    threading.Timer(0.3, completion.stop).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        list(completion)
    assert time.monotonic() - began < 5
    server.gone.set()
    asked = len(server.asked)
    completion = Completion(server.place, {})
    completion.stop()
    with pytest.raises(Stopped):
        list(completion)
    assert len(server.asked) == asked


def test_who_reads_no_further_hangs_up(server: Scripted) -> None:
    server.answer = endless(server)
    for text in completions.ask(server.place, {}):
        assert text == "x"
        break
    assert server.gone.wait(2)
