"""The exception of this package."""

from __future__ import annotations


class CutlineError(Exception):
    """Something cannot be done. The text says what is wrong, and then what to do."""

    code: str
    """A stable name, as in the answers of the HTTP server: ``unsupported_format``, …"""
    field: str | None
    """The parameter that is wrong, if it is one."""

    def __init__(self, detail: str, code: str, field: str | None = None) -> None:
        # All of them are arguments, so that an exception can be pickled.
        super().__init__(detail, code, field)
        self.code = code
        self.field = field

    def __str__(self) -> str:
        return str(self.args[0])
