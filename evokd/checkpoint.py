"""Small files written whole or not at all, with a checksum for state."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from evokd.errors import EvokdError


def write_whole(path: Path, text: str) -> None:
    """Temporary file, fsync, rename: a reader sees the old text or the new one."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_state(path: Path, state: dict[str, Any]) -> None:
    body = json.dumps(state, sort_keys=True)
    write_whole(
        path,
        json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "state": state}, sort_keys=True, indent=1),
    )


def read_state(path: Path) -> dict[str, Any]:
    """The state, checked.

    Raises:
        EvokdError: missing, torn or altered.
    """
    try:
        whole = json.loads(path.read_text())
        if hashlib.sha256(json.dumps(whole["state"], sort_keys=True).encode()).hexdigest() != whole["sha256"]:
            raise ValueError("checksum differs")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvokdError(str(path), "a whole state file", str(error)[:80]) from None
    return whole["state"]
