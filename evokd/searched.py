"""A search as a part of something larger: found finished in its folder, gone on with, or begun."""

from __future__ import annotations

from pathlib import Path

from evokd import distiller, student
from evokd.config import Config, read_config
from evokd.journal import read_events
from evokd.report.terminal import Terminal


def searched(config: Config, terminal: Terminal) -> Path:
    """The finished run of a configuration, in the folder that its `out` names.

    Raises:
        EvokdError: whatever the search refuses.
    """
    search = student if config.task == "student" else distiller
    for path in sorted(Path(config.out).glob(f"*-{config.task}-*/config.toml")):
        if read_config(path).hash() == config.hash():
            if any(event["event"] == "end" for event in read_events(path.parent)):
                return path.parent
            named = {"teacher": config.teacher, "student": config.student}  # users' files must be named by whoever resumes
            return search.resume(path.parent, terminal, named).run
    return search.run(config, terminal).run
