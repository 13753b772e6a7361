"""User errors in four parts: where, what was expected, what came, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class EvokdError(Exception):
    """A mistake a user can mend; the command line prints it as one line and exits with code 2."""

    def __init__(self, where: str, expected: str, got: str, hint: str = "") -> None:
        self.where, self.expected, self.got, self.hint = where, expected, got, hint
        super().__init__(f"{where}: expected {expected}, got {got}" + (f"; {hint}" if hint else ""))


def closest(name: str, choices: Iterable[str]) -> str:
    """A did-you-mean hint, or the choices themselves where nothing is near."""
    names = sorted(choices)
    near = get_close_matches(name, names, n=3)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "choose from " + ", ".join(names[:12]) + (", …" if len(names) > 12 else "")


def unknown(where: str, what: str, name: str, choices: Iterable[str]) -> EvokdError:
    """The error for a name that is not in a table."""
    return EvokdError(where, what, repr(name[:60]), closest(name, choices))
