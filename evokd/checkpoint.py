"""Files that no fault tears: small ones written whole or not at all, and lines that are only ever appended.

A full disk pauses what is written: it is said once, tried again for a minute, and then refused, with everything before it intact.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evokd.errors import EvokdError

VERSION = 1
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds between two tries on a full disk


def patiently(write: Callable[[], None], path: Path) -> None:
    """Write, and again after each pause while the disk is full.

    Raises:
        EvokdError: a disk that stays full, or that cannot be written at all.
    """
    for number, pause in enumerate((*PAUSES, None)):
        try:
            return write()
        except OSError as error:
            if error.errno not in FULL or pause is None:
                hint = "make room, then go on with --resume" if error.errno in FULL else ""
                raise EvokdError(str(path), "a file that can be written", error.strerror or str(error), hint) from None
            if number == 0:
                told = f"evokd: {path}: the disk is full; paused, trying again for {sum(PAUSES):.0f} seconds"
                print(told, file=sys.stderr, flush=True)
            time.sleep(pause)


def write_whole(path: Path, text: str) -> None:
    """Temporary file, fsync, rename: a reader sees the old text or the new one.

    Raises:
        EvokdError: a disk that cannot be written.
    """
    part = path.with_name(path.name + ".part")

    def write() -> None:
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)  # half a file would keep a full disk full
            raise

    patiently(write, path)


class Lines:
    """An append-only file of lines, each there as a whole or not at all; what a death left of one is cut off at the start.

    Attributes:
        path: of the file.
        count: lines in it.
        digest: SHA-256 over all of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        whole = path.read_bytes()
        self._size = whole.rfind(b"\n") + 1
        os.ftruncate(self._file, self._size)
        self.count, self.digest = whole.count(b"\n"), hashlib.sha256(whole[: self._size])

    def write(self, line: str) -> None:
        """In the file when this returns, though not yet synced to disk.

        Raises:
            EvokdError: a disk that stays full, or cannot be written at all; the lines before are whole.
        """
        raw = f"{line}\n".encode(errors="backslashreplace")  # a lone surrogate as JSON spells it
        patiently(lambda: self._append(raw), self.path)
        self._size += len(raw)
        self.count += 1
        self.digest.update(raw)

    def _append(self, raw: bytes) -> None:
        done = 0
        try:
            while done < len(raw):
                done += os.pwrite(self._file, raw[done:], self._size + done)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise

    def sync(self) -> None:
        patiently(lambda: os.fsync(self._file), self.path)

    def clear(self) -> None:
        os.ftruncate(self._file, 0)
        self._size = self.count = 0
        self.digest = hashlib.sha256()

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def write_state(path: Path, state: dict[str, Any]) -> None:
    """The state with its version and its checksum."""
    state = {"version": VERSION, **state}
    body = json.dumps(state, sort_keys=True)
    write_whole(
        path,
        json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "state": state}, sort_keys=True, indent=1),
    )


def read_state(path: Path) -> dict[str, Any]:
    """The state, checked.

    Raises:
        EvokdError: missing, torn, altered, or of another version.
    """
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        if hashlib.sha256(json.dumps(whole["state"], sort_keys=True).encode()).hexdigest() != whole["sha256"]:
            raise ValueError("checksum differs")
        if whole["state"]["version"] != VERSION:
            raise ValueError(f"version {str(whole['state']['version'])[:20]}, this evokd reads {VERSION}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EvokdError(str(path), "a whole state file", str(error)[:80]) from None
    return whole["state"]
