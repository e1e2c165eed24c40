"""`python -m student_train.chat CONFIG_AS_JSON`: a conversation in the terminal under the chat template."""

from __future__ import annotations

import contextlib
import sys

import torch

from shards.errors import UserError
from shards.job import EXIT_OK, EXIT_USER

from .batch import Batch, Written, check_prompt, held
from .config import ChatConfig
from .model.files import load_model
from .model.lm import Student
from .model.tokenizer import StudentTokenizer, TextStream

HELP = "/reset forgets the conversation, /quit (or Ctrl-D) ends it, Ctrl-C cuts an answer short"


class Chat:
    """The conversation so far; every answer is written after all of it."""

    def __init__(self, config: ChatConfig, student: Student, tokenizer: StudentTokenizer) -> None:
        self.config, self.student, self.tokenizer = config, student, tokenizer
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.config.system}] if self.config.system else []

    def answer(self, text: str) -> None:
        """Write the answer to standard output as it comes; Ctrl-C ends it and keeps what was said.

        Raises:
            UserError: a control token in the text, or no chat template.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        ids = self.tokenizer.conversation(asked)
        check_prompt(self.student, ids)
        turn = sum(m["role"] == "user" for m in asked)
        sampling = self.config.generate.model_copy(update={"seed": self.config.generate.seed + turn - 1})
        row = Written(ids, sampling, self.tokenizer.stop_ids, self.tokenizer.runs(asked, ids))
        batch, stream, said = Batch(self.student), TextStream(self.tokenizer), ""
        batch.add(row)
        with contextlib.suppress(KeyboardInterrupt):
            while row.end is None:
                for _, picked in batch.step():
                    piece = stream.push(picked.id) if row.end != "stop" else ""
                    said += piece
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        rest = stream.finish()
        sys.stdout.write(rest + "\n")
        self.messages = [*asked, {"role": "assistant", "content": said + rest}]


def talk(config: ChatConfig) -> None:
    """Until /quit or the end of input.

    Raises:
        UserError: no student there, or a tokenizer without chat template.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for `input`)
    student = load_model(config.model).to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_(False)
    chat = Chat(config, student, StudentTokenizer(config.model))
    if not chat.tokenizer.template:
        raise UserError(f"{config.model}: the tokenizer has no chat template; use 'minicodformer generate'")
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        sys.stdout.write(HELP + "\n")
    with held(student):
        while True:
            try:
                text = input("> " if at_terminal else "").strip()
            except (EOFError, KeyboardInterrupt):
                return
            match text:
                case "":
                    continue
                case "/quit":
                    return
                case "/reset":
                    chat.reset()
                case "/help":
                    sys.stdout.write(HELP + "\n")
                case _:
                    try:
                        chat.answer(text)
                    except UserError as e:
                        sys.stderr.write(f"error: {e}\n")


def main() -> int:
    """Exit code of this process."""
    try:
        talk(ChatConfig.model_validate_json(sys.argv[1]))
    except UserError as e:
        sys.stderr.write(f"error: {e}\n")
        return EXIT_USER
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
