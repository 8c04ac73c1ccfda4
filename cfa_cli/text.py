"""FLOOR 0, text for people: what others wrote, as it may be shown, and commands, as they may be typed."""

from __future__ import annotations

import os
import shlex
import subprocess
import unicodedata
from collections.abc import Sequence


def printable(text: str, limit: int | None = None) -> str:
    r"""Return `text` with every character that a terminal would obey or not show written as its escape.

    Control characters (the start of a terminal's commands, line ends), characters that turn the direction of writing
    and bytes that are no text become `\x1b`, `\n`, `\u202e`, `\udcff`. A text longer than `limit` characters is cut.

    >>> printable("\x1b[2Jgood")
    '\\x1b[2Jgood'
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 3] + "..."
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else char.encode("unicode_escape").decode()
        for char in text
    )


def command_line(words: Sequence[str]) -> str:
    """Join words to what can be typed into a shell; those of Windows take double quotes alone."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
