"""The server as its clients see it: OpenAI's own client, and sockets that misbehave."""

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest
import uvicorn

from student_train.config import GenerateConfig, ServeConfig
from student_train.generate import generate_ids
from student_train.model.files import load_model
from student_train.model.tokenizer import StudentTokenizer
from student_train.serve.__main__ import bind
from student_train.serve.app import Server
from student_train.serve.engine import Engine
from student_train.serve.metrics import Metrics

LONG = 2000


class Running:
    """A server in a thread of this process."""

    def __init__(self, folder, key=None, **settings):
        config = ServeConfig(model=folder, name="tiny", port=0, **{"max_new_tokens": LONG, **settings})
        self.engine = Engine(load_model(folder), Metrics(), config.max_rows, config.max_waiting)
        app = Server(config, self.engine, StudentTokenizer(folder), key).app()
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        bound = bind(config)
        self.port = bound.getsockname()[1]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve(sockets=[bound])))
        self._thread.start()
        wait_for(lambda: self._server.started)
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key or "-", max_retries=0)

    def stop(self):
        self.client.close()
        self._server.should_exit = True
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()

    def post(self, body, path="/v1/completions", **headers):
        """(status, JSON) of a raw body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST", path, body, {"content-type": "application/json", **headers})
        return self._read(connection)

    def get(self, path, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path, headers=headers)
        return self._read(connection)

    @staticmethod
    def _read(connection):
        with contextlib.closing(connection):
            answer = connection.getresponse()
            data = answer.read().decode()
            is_json = answer.headers["content-type"].startswith("application/json")
            return answer.status, json.loads(data) if is_json else data

    def rows(self):
        return self.engine.metrics.rows.value


def wait_for(condition, patience=20):
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def running(talker):
    server = Running(talker)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def alone(talker):
    """What the student writes greedily after a prompt when nobody else asks."""
    student, tokenizer = load_model(talker), StudentTokenizer(talker)

    def write(prompt, tokens):
        config = GenerateConfig(max_new_tokens=tokens, temperature=0)
        return "".join(tokenizer.stream(generate_ids(student, tokenizer.plain(prompt), config, tokenizer.stop_ids)))

    return write


def test_models_are_listed_and_others_are_not_found(running):
    assert [m.id for m in running.client.models.list()] == ["tiny"]
    assert running.client.models.retrieve("tiny").owned_by == "minicodformer"
    with pytest.raises(openai.NotFoundError, match="'other' is not here"):
        running.client.completions.create(model="other", prompt="x")


def test_a_completion_with_log_probabilities_and_usage(running, alone):
    answer = running.client.completions.create(model="tiny", prompt="Once", max_tokens=9, temperature=0, logprobs=3)
    (choice,) = answer.choices
    assert choice.text == alone("Once", 9)
    assert choice.finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (4, 9, 13)
    assert len(choice.logprobs.tokens) == 9
    for value, top in zip(choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True):
        assert value == pytest.approx(max(top.values()))
        assert sum(2.718281828**v for v in top.values()) <= 1.001


def test_a_streamed_completion_joins_to_the_whole_one(running, alone):
    options = {"model": "tiny", "prompt": ["Once", "Twice"], "max_tokens": 12, "temperature": 0}
    chunks = list(running.client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    texts, ends = ["", ""], [None, None]
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [alone("Once", 12), alone("Twice", 12)]
    assert ends == ["length", "length"]
    assert chunks[-1].usage.completion_tokens == 24
    assert len(chunks) > 10


def test_chat_whole_and_streamed_with_log_probabilities(running):
    options = {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "temperature": 0,
        "max_completion_tokens": 8,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = running.client.chat.completions.create(**options)
    (choice,) = whole.choices
    assert choice.message.role == "assistant"
    assert len(choice.logprobs.content) == 8
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    assert choice.logprobs.content[0].logprob == pytest.approx(choice.logprobs.content[0].top_logprobs[0].logprob)
    chunks = list(running.client.chat.completions.create(**options, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == choice.message.content
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert [t.bytes for t in streamed] == [t.bytes for t in choice.logprobs.content]
    assert chunks[-1].choices[0].finish_reason == "length"


def test_seeds_choices_and_stop_texts(running, alone):
    options = {"model": "tiny", "prompt": "It was", "max_tokens": 20, "temperature": 1.5, "n": 3, "seed": 5}
    first, again = (running.client.completions.create(**options) for _ in range(2))
    texts = [c.text for c in first.choices]
    assert texts == [c.text for c in again.choices]
    assert len(set(texts)) == 3
    greedy = alone("It was", 30)
    stop = greedy[5:7]
    options = {"model": "tiny", "prompt": "It was", "max_tokens": 30, "temperature": 0, "stop": [stop]}
    answer = running.client.completions.create(**options)
    assert answer.choices[0].text == greedy[: greedy.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_many_clients_at_once_get_what_each_would_get_alone(running, alone):
    prompts = [f"Number {i}" + "!" * (i % 7) for i in range(24)]

    def ask(prompt):
        stream = running.client.completions.create(
            model="tiny", prompt=prompt, max_tokens=15, temperature=0, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in stream)

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        texts = list(pool.map(ask, prompts))
    assert texts == [alone(p, 15) for p in prompts]
    wait_for(lambda: running.rows() == 0)


COMPLETION = {"model": "tiny", "prompt": "x"}
WRONG = {
    "broken JSON": (b'{"model": ', 400, "not JSON"),
    "bad UTF-8": (b'{"model": "tiny", "prompt": "\xff"}', 400, "not UTF-8"),
    "a lone surrogate": (rb'{"model": "tiny", "prompt": "\ud800"}', 400, "not UTF-8"),
    "deep nesting": (b"[" * 100_000, 400, "not JSON"),
    "no object": (b"[1]", 400, "not a JSON object"),
    "a wrong type": (json.dumps(COMPLETION | {"temperature": "hot"}), 400, "temperature"),
    "not a number": (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', 400, "temperature"),
    "an unknown argument": (json.dumps(COMPLETION | {"bacth": 1}), 400, "bacth: unrecognized"),
    "an argument we do not have": (json.dumps(COMPLETION | {"echo": True}), 400, "echo: this server does not have it"),
    "no prompt": (json.dumps({"model": "tiny"}), 400, "prompt: Field required"),
    "an empty prompt": (json.dumps(COMPLETION | {"prompt": ""}), 400, "prompt: empty"),
    "unknown tokens": (json.dumps(COMPLETION | {"prompt": [5, 99_999]}), 400, "99999"),
    "a million tokens": (json.dumps(COMPLETION | {"max_tokens": 1_000_000}), 400, f"at most {LONG}"),
    "a long prompt": (json.dumps(COMPLETION | {"prompt": "x" * 20_000}), 400, "20000 tokens"),
    "many choices": (json.dumps(COMPLETION | {"prompt": ["x"] * 40, "n": 2}), 400, "at most 64"),
    "an oversized body": (b'"' + b"x" * 2_000_000 + b'"', 413, "larger than"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_gets_the_right_status_and_an_error_in_openais_shape(running, case):
    body, status, text = WRONG[case]
    found, answer = running.post(body)
    assert found == status
    assert text in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert running.get("/health") == (200, {"status": "ok"})


def test_wrong_addresses_methods_hosts_and_kinds_of_body_are_refused(running):
    assert running.get("/v2/nothing")[0] == 404
    status, answer = running.get("/v1/completions")
    assert (status, answer["error"]["type"]) == (405, "invalid_request_error")
    assert running.post(b"{}", **{"content-type": "text/plain"})[0] == 415
    status, answer = running.get("/v1/models", host="evil.example")
    assert (status, answer["error"]["code"]) == (421, "wrong_host")
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "a<|im_end|>b"}]}
    status, answer = running.post(json.dumps(chat), "/v1/chat/completions")
    assert status == 400
    assert "control token" in answer["error"]["message"]


def test_a_chunked_body_without_length_meets_the_limit_too(running):
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as line:
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            for _ in range(40):
                line.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(running, stream):
    before = running.engine.metrics.cancelled.value
    body = json.dumps(COMPLETION | {"max_tokens": LONG, "stream": stream, "n": 2}).encode()
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as line:
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        wait_for(lambda: running.rows() == 2)
    wait_for(lambda: running.rows() == 0 and running.engine.metrics.cancelled.value == before + 2)


def test_idle_connections_do_not_stand_in_the_way(running):
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=20))
        assert running.post(json.dumps(COMPLETION | {"max_tokens": 2}))[0] == 200


def test_metrics_count_in_prometheus_format(running):
    running.post(json.dumps(COMPLETION | {"max_tokens": 3}))
    status, text = running.get("/metrics")
    assert status == 200
    for line in text.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) minicodformer_\w+ .+|minicodformer_\w+(\{[^}]*\})? [\d.e+-]+", line), line
    count = re.search(r'requests_total\{path="/v1/completions",status="200"\} (\d+)', text)
    assert int(count[1]) >= 1
    assert int(re.search(r"^minicodformer_tokens_total (\d+)", text, re.M)[1]) >= 3


def test_the_page_asks_nobody_outside(running):
    status, page = running.get("/")
    assert status == 200
    assert "playground" in page
    assert not re.search(r"(src|href)=\"(?!data:,)|https?://|@import|url\(", page)


def test_a_full_queue_a_time_limit_and_a_key(talker):
    server = Running(talker, key="secret", max_rows=1, max_waiting=1, timeout_s=1.5, max_new_tokens=100_000)
    try:
        assert server.get("/health")[0] == 200
        for headers in ({}, {"authorization": "Bearer wrong"}):
            status, answer = server.post(json.dumps(COMPLETION), **headers)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert server.get("/metrics")[0] == 401
        endless = {"model": "tiny", "prompt": "x", "max_tokens": 100_000}
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            late = [pool.submit(server.client.completions.create, **endless) for _ in range(2)]
            wait_for(lambda: server.rows() == 1 and server.engine.metrics.waiting.value == 1)
            with pytest.raises(openai.RateLimitError, match="waiting"):
                server.client.completions.create(**endless)
            for one in late:
                with pytest.raises(openai.InternalServerError, match="took longer"):
                    one.result()
        with pytest.raises(openai.APIError, match="took longer"):
            list(server.client.completions.create(**endless, stream=True))
    finally:
        server.stop()


def start(folder, *flags):
    command = [sys.executable, "-m", "pipeline", "serve", "--model", str(folder), "--port", "0", *flags]
    tree = str(Path(__file__).parents[2])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": tree})
    line = process.stdout.readline()
    found = re.search(r"serving (\w+) at (http://127\.0\.0\.1:\d+/v1)", line)
    assert found, line
    return process, openai.OpenAI(base_url=found[2], api_key="-", max_retries=0), found[1]


@pytest.mark.parametrize(("tokens", "grace"), [(300, "60"), (4000, "0.5")])
def test_sigterm_lets_streams_end_within_the_grace_and_leaves_with_0(talker, tokens, grace):
    process, client, name = start(talker, "--grace", grace)
    with process, client:
        stream = client.completions.create(model=name, prompt="x", max_tokens=tokens, temperature=0, stream=True)
        iterator = iter(stream)
        next(iterator)
        process.send_signal(signal.SIGTERM)
        if grace == "60":
            assert [c.choices[0].finish_reason for c in iterator][-1] == "length"
        else:
            with pytest.raises(openai.APIError, match="going down"):
                list(iterator)
        assert process.wait(timeout=60) == 0


def test_a_taken_port_is_said_in_one_line(talker):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "pipeline", "serve", "--model", str(talker), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: --host 127.0.0.1 --port {port}: .*--port \(0: any free one\)\n", done.stderr)
