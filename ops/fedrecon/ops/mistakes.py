"""What a person got wrong, said so that they can mend it.

A mistake is shown as text without a traceback, and ends a program with exit code 2, or 3 where a service that was named
does not answer. This module needs nothing but
Python, so that the `fedrecon` command can use it before any extra is installed.
"""

from __future__ import annotations


class UserMistake(Exception):  # noqa: N818 - it is the person's mistake, not an error of the program
    """Something that only the person who started the program can mend.

    Args:
        message: What was wrong, and where.
        advice: What to do about it.
    """

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message}\n  {self.advice}" if self.advice else self.message


class Unreachable(UserMistake):
    """A service that the person named does not answer: its address is wrong, or it does not run."""
