"""The viewer: its answers over HTTP from real shards, and the page in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

from pipeline.view.library import Library
from pipeline.view.server import ViewServer
from pipeline.view.text import TokenText
from shards import Capture, DatasetWriter, Header, Row, open_dataset, plan_shards

WORDS, ROWS = 40, 30


def a_row(index: int) -> Row:
    """Ten tokens; the seventh of row 7 surprises most. Heads hold two ids, the rest one draw."""
    rng = np.random.default_rng(index)
    ids = rng.integers(2, WORDS, 10).astype(np.int32)
    ids[3] = 2 + index % 5
    n = 9
    entropy = rng.uniform(0.1, 2.0, n).astype(np.float32)
    if index == 7:
        entropy[6] = 3.5
    heads = np.stack([ids[1:], (ids[1:] + 1) % WORDS], 1).ravel().astype(np.int32)
    return Row(
        row_id=index,
        input_ids=ids,
        segment_starts=np.array([0], np.int32),
        prompt_runs=np.zeros((0, 2), np.int32),
        scored=np.ones(n, np.bool_),
        source="even" if index % 2 == 0 else "odd",
        capture=Capture(
            head_lengths=np.full(n, 2, np.uint16),
            head_ids=heads,
            head_logprobs=np.log(np.tile(np.array([0.5, 0.25], np.float32), n)),
            rest_mass=np.full((n, 1), 0.25, np.float32),
            tail_lengths=np.ones(n, np.uint16),
            tail_ids=((ids[1:] + 2) % WORDS).astype(np.int32),
            tail_counts=np.full(n, 3, np.uint16),
            label_logprob=np.full(n, np.log(0.5), np.float32),
            label_rank=np.zeros(n, np.uint32),
            entropy=entropy,
        ),
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, decoders, models

    root = tmp_path_factory.mktemp("view") / "shards"
    header = Header(
        kind="captures",
        num_rows=ROWS,
        vocab_size=WORDS,
        vocab_rows=WORDS,
        head_size=2,
        tail={"draws": 3},
        fingerprints={"teacher": "t", "tokenizer": "k", "chat_template": "", "corpus": "x"},
        max_length=10,
    )
    plan = plan_shards(ROWS, 8)
    writer = DatasetWriter(root / "val", header, plan, rows_per_batch=4)
    for shard in plan:
        writer.write(shard, [a_row(i) for i in range(shard.first_row, shard.first_row + shard.num_rows)])
    writer.close()
    words = Tokenizer(models.WordLevel({f" wort{i}x": i for i in range(WORDS)}, unk_token=" wort0x"))
    words.decoder = decoders.Fuse()
    (root / "teacher" / "tokenizer").mkdir(parents=True)
    words.save(str(root / "teacher" / "tokenizer" / "tokenizer.json"))
    return root


def small_student(folder: Path) -> Path:
    from student_train.config import StudentConfig
    from student_train.model.files import save_model
    from student_train.model.lm import Student

    config = {"hidden_size": 16, "encoder": {"layers": 1, "heads": 2}, "blocks": 1, "cell": {"units": 16}}
    save_model(folder, Student(StudentConfig.model_validate(config), WORDS, WORDS), None, {})
    return folder


@pytest.fixture(scope="module")
def server(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ViewServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        library = Library([shards / "val"], small_student(tmp_path_factory.mktemp("model")))
        server = ViewServer(library, 0)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        library.shelves["val"].catalogue.wait()
        yield server
        server.shutdown()
        thread.join()
        server.server_close()
        library.close()


def get(server: ViewServer, path: str, **given: Any) -> Any:
    with urllib.request.urlopen(f"{server.url}api/{path}?{urlencode(given)}", timeout=60) as answer:
        return json.loads(answer.read())


def test_search_finds_the_rows_that_hold_a_text_and_no_others(server: ViewServer, shards: Path) -> None:
    want = [i for i, row in enumerate(open_dataset(shards / "val").rows()) if 17 in row.input_ids]
    found = get(server, "rows", data="val", q="WORT17x", count=100)
    assert [r["row"] for r in found["rows"]] == want != []
    assert found["next"] is None


def test_rows_come_by_source_and_page_by_page(server: ViewServer) -> None:
    first = get(server, "rows", data="val", source="odd", count=6)
    assert [r["row"] for r in first["rows"]] == [1, 3, 5, 7, 9, 11]
    then = get(server, "rows", data="val", source="odd", count=100, **{"from": first["next"]})
    assert [r["row"] for r in then["rows"]] == list(range(13, ROWS, 2))


def test_the_worst_token_is_found(server: ViewServer) -> None:
    worst = get(server, "worst", data="val", by="entropy", count=3)["tokens"]
    assert (worst[0]["row"], worst[0]["position"], worst[0]["value"]) == (7, 6, 3.5)


def test_a_position_shows_what_is_stored_and_what_the_student_says(server: ViewServer) -> None:
    said = get(server, "position", data="val", row=4, position=2, student=1)
    ids = a_row(4).input_ids
    assert [t["id"] for t in said["head"]] == [ids[3], ids[3] + 1]
    assert [t["p"] for t in said["head"]] == pytest.approx([0.5, 0.25], rel=1e-3)
    assert said["tail"][0]["count"] == 3
    q = [t["student"] for t in said["head"]]
    kl = 0.5 * np.log(0.5 / q[0]) + 0.25 * np.log(0.25 / q[1]) + 0.25 * np.log(0.25 / (1 - sum(q)))
    assert said["student"]["kl"] == pytest.approx(kl, abs=1e-3)
    assert get(server, "scores", data="val", row=4)["kl"][2] == said["student"]["kl"]


@pytest.mark.parametrize(
    ("query", "status"),
    [("row?data=val&row=99", 404), ("row?data=no&row=1", 404), ("row?data=val&row=x", 400), ("nothing", 404)],
)
def test_a_wrong_question_gets_a_reason(server: ViewServer, query: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.url}api/{query}")
    assert refused.value.code == status
    assert json.loads(refused.value.read())["error"]


def test_another_host_name_is_refused(server: ViewServer) -> None:
    request = urllib.request.Request(server.url, headers={"Host": f"evil.example:{server.server_port}"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)


def test_half_characters_stand_with_their_last_token() -> None:
    from tokenizers import Tokenizer, decoders, models

    vocab = {c: i for i, c in enumerate(["ä", "½", "ł", "a"])}  # the bytes e4 bd a0 (你), and a letter
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.decoder = decoders.ByteLevel()
    text = TokenText(tokenizer)
    assert text.pieces([3, 0, 1, 2, 3]) == ["a", "", "", "你", "a"]
    assert text.one(0) == "⟨e4⟩"


@pytest.fixture(scope="module")
def page(server: ViewServer) -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        reason = "no browser: chromium is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def test_keys_walk_through_rows_and_tokens_and_the_address_follows(server: ViewServer, page: Any) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}#data=val&row=7")
    page.wait_for_selector("#text .scored")
    page.keyboard.press("j")
    page.locator("#about h2", has_text="Row 8").wait_for()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#head code")
    assert "row=8&token=1" in page.url
    page.wait_for_selector("#favourites code")
    page.keyboard.press("w")
    page.locator("#list > button").first.click()
    page.locator("#about h2", has_text="Row 7").wait_for()
    assert "token=7" in page.url
    assert page.locator("#text .picked").get_attribute("data-token") == "7"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    assert all(url.startswith((server.url, "data:")) for url in asked)


def test_the_page_searches_and_colours_by_kl(server: ViewServer, page: Any) -> None:
    page.goto("about:blank")
    page.goto(f"{server.url}#data=val&row=3")
    page.wait_for_selector("#text .scored")
    page.keyboard.press("/")
    page.keyboard.type("wort17x")
    page.keyboard.press("Enter")
    page.locator("#progress", has_text="found").wait_for()
    page.keyboard.press("4")
    page.wait_for_selector("#text .scored[title^=KL]")
    assert "by=kl" in page.url
    assert "q=wort17x" in page.url
