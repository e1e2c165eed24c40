"""`python -m student_train.serve CONFIG_AS_JSON`: load a student, bind, serve until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
from types import FrameType

import torch
import uvicorn

from shards.errors import UserError
from shards.job import EXIT_OK, EXIT_USER

from ..config import ServeConfig
from ..model.files import load_model
from ..model.tokenizer import StudentTokenizer
from .app import Server
from .engine import Engine
from .metrics import Metrics


class _Uvicorn(uvicorn.Server):
    """uvicorn, with the engine told at once when a signal comes."""

    def __init__(self, config: uvicorn.Config, engine: Engine, grace_s: float) -> None:
        super().__init__(config)
        self._engine, self._grace_s = engine, grace_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._engine.drain(self._grace_s)
        super().handle_exit(sig, frame)


def serve(config: ServeConfig) -> None:
    """Returns after a clean shutdown.

    Raises:
        UserError: no student there, the address is taken, or the key's variable is not set.
    """
    key = None
    if config.api_key_env is not None and not (key := os.environ.get(config.api_key_env)):
        raise UserError(f"--api-key-env {config.api_key_env}: not set; export it with the key that clients must show")
    student = load_model(config.model).to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_(False)
    tokenizer = StudentTokenizer(config.model)
    bound = bind(config)
    engine = Engine(student, Metrics(), config.max_rows, config.max_waiting)
    app = Server(config, engine, tokenizer, key).app()
    options = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(config.grace_s) + 5,
    )
    host, port = bound.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    sys.stdout.write(f"serving {config.name} at {address}/v1, playground at {address}/\n")
    if key is None and not host.startswith("127.") and host != "::1":
        sys.stdout.write("warning: reachable from elsewhere and without a key; see --api-key-env\n")
    sys.stdout.flush()
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again when all is done
        signal.signal(number, lambda *_: None)
    asyncio.run(_Uvicorn(options, engine, config.grace_s).serve(sockets=[bound]))


def bind(config: ServeConfig) -> socket.socket:
    """Raises UserError: the address is not to be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 1 << 16)) if hard >= 0 else 1 << 16, hard))
    bound = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as e:
        if bound is not None:
            bound.close()
        raise UserError(
            f"--host {config.host} --port {config.port}: {e.strerror or e}; "
            "choose another with --port (0: any free one)"
        ) from None
    return bound


def main() -> int:
    """Exit code of this process."""
    try:
        serve(ServeConfig.model_validate_json(sys.argv[1]))
    except UserError as e:
        sys.stderr.write(f"error: {e}\n")
        return EXIT_USER
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
