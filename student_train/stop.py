"""Ctrl-C and SIGTERM as a wish: the step in progress is finished, then all ranks stop together."""

from __future__ import annotations

import signal
from types import FrameType

EXIT_STOPPED = 128 + signal.SIGTERM


class StopWish:
    """True once SIGTERM or SIGINT has arrived."""

    def __init__(self) -> None:
        self.wished = False

    def listen(self) -> None:
        """Take the two signals over for the rest of the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._heard)

    def _heard(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  the signal module's shape
        self.wished = True
