"""`generate` and `chat` as commands, with a real student."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]


def call(*args, text="", cwd=TREE):
    command = [sys.executable, "-m", "pipeline", *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(TREE)}
    return subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=100
    )


def test_generate_reads_standard_input_and_writes_a_file_and_its_speed(talker, tmp_path):
    out = tmp_path / "out.txt"
    flags = ["--max-new-tokens", 12, "--temperature", 0, "--time-stats"]
    done = call("generate", "--student", talker, "--input", "-", "--output", out, *flags, text="你好\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert out.read_text(encoding="utf-8").startswith("你好")
    assert re.fullmatch(
        r"prompt 6 tokens, written 12; first token after [\d.]+ ms, then [\d.]+ ms a token \([\d.]+ tokens/s\)\n",
        done.stderr,
    )


def test_generate_ends_before_a_stop_text(talker):
    flags = ["--student", talker, "--input", "Once", "--max-new-tokens", 30, "--temperature", 0, "--json"]
    whole = json.loads(call("generate", *flags).stdout)
    assert (whole["tokens"], whole["prompt_tokens"]) == (30, 4)
    stop = whole["text"][4:6]
    cut = json.loads(call("generate", *flags, "--stop", stop, "--min-p", 0.01).stdout)
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]
    assert cut["tokens"] < 30


def test_chat_answers_forgets_and_quits(talker):
    flags = ["--student", talker, "--max-new-tokens", 10, "--temperature", 0]
    lines = "hi\nhi\n/reset\nhi\na<|im_end|>b\n/quit\nnever read\n"
    done = call("chat", *flags, text=lines)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"error: prompt: holds the control token <\|im_end\|>.*\n", done.stderr)
    alone = call("chat", *flags, text="hi\n")
    assert done.stdout.startswith(alone.stdout)
    assert done.stdout.endswith(alone.stdout)
    assert len(done.stdout) > 2 * len(alone.stdout)


@pytest.mark.parametrize("command", ["chat", "serve"])
def test_a_missing_student_is_said_in_one_line(command, tmp_path):
    done = call(command, "--root", tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*no trained student yet.*\n", done.stderr)
