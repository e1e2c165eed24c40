"""`view`: a local page over shards and, if one is given, a student."""

from __future__ import annotations

import contextlib
import errno
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.errors import UserError

from .generate import find_student
from .look import datasets_in

if TYPE_CHECKING:
    from ..view.library import Library
    from ..view.server import ViewServer

_PORT = 8642


def add(app: typer.Typer) -> None:
    epilog = "Example: minicodformer view --shards dumps/quickstart/shards --student runs/quickstart/train/model"
    app.command(epilog=epilog)(view)


def view(
    shards: Annotated[Path, typer.Option(help="A dataset (train/ or val/), or the folder that holds several.")],
    student: Annotated[Path | None, typer.Option(help="A student's folder, to compare with the teacher.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help=f"Default: {_PORT}, or a free one; 0: a free one.")
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Only say the address; open no browser.")] = False,
) -> None:
    """Browse shards in the browser, token by token, with a student beside the teacher. Ctrl-C ends it."""
    from ..view.library import Library

    model = find_student(Path(), None, student) if student is not None else None
    library = Library(datasets_in(shards), model)
    try:
        server = _listen(library, port)
        typer.echo(f"{server.url}  (Ctrl-C ends it)")
        if not no_open:
            webbrowser.open(server.url)
        with contextlib.suppress(KeyboardInterrupt), server:
            server.serve_forever()
    finally:
        library.close()


def _listen(library: Library, port: int | None) -> ViewServer:
    from ..view.server import ViewServer

    try:
        return ViewServer(library, _PORT if port is None else port)
    except OSError as e:
        if e.errno != errno.EADDRINUSE:
            raise
        if port is None:
            return ViewServer(library, 0)
        raise UserError(f"--port {port}: in use; give another, or leave it out to take a free one") from None
