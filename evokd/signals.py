"""How a run ends before its time: a signal drops the candidate in flight, a second one stops at once, SIGUSR1 or a file STOP waits for
the end of the generation.

Handlers only take note; an exception rises where nothing can be torn: between candidates, and within the evaluation of one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
STOP = "STOP"  # the file in a run folder


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop, and that can go on.

    Attributes:
        code: of the process: 130 after SIGINT, 143 after SIGTERM, 0 where the generation was waited for.
    """

    def __init__(self, text: str, code: int) -> None:
        self.code = code
        super().__init__(text)


class Ending:
    """Listens while it is entered, in the main thread alone; elsewhere, and never entered, it only looks for the file STOP.

    Args:
        folder: of the run; None for none.
        command: how to go on.
    """

    def __init__(self, folder: Path | None = None, command: str = "") -> None:
        self.folder, self.command = folder, command
        self.asked: int | None = None  # the signal
        self._later = self._dropping = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Ending:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: self._now for number in NAMES} | {signal.SIGUSR1: self._after}
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _now(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            _say("stopped at once\n" + ("\x1b[?25h" if sys.stderr.isatty() else ""))  # a cursor that a status line hid
            os._exit(128 + number)
        self.asked = number
        _say("stopping: the candidate in flight is dropped; a second signal stops at once\n")
        if self._dropping:
            self.check()

    def _after(self, number: int, frame: FrameType | None) -> None:
        self._later = True
        _say("stopping after this generation\n")

    def check(self) -> None:
        """Raises Interrupted if a signal asked for it."""
        if self.asked is not None:
            raise Interrupted(f"stopped by {NAMES[self.asked]}; to go on: {self.command}", 128 + self.asked)

    def check_generation(self) -> None:
        """Raises Interrupted if a generation's end was waited for. The file STOP is spent with it, so that the run can go on."""
        self.check()
        found = self.folder is not None and (self.folder / STOP).exists()
        if found:
            (self.folder / STOP).unlink(missing_ok=True)
        if found or self._later:
            raise Interrupted(f"stopped after the generation, as asked; to go on: {self.command}", 0)

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """What is inside may be cut off anywhere."""
        self.check()
        self._dropping = True
        try:
            yield
        finally:
            self._dropping = False


def _say(text: str) -> None:
    """Unbuffered: a handler may have cut into another write."""
    os.write(2, f"\nevokd: {text}".encode())
