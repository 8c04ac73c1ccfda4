"""FLOOR 0, text for people: what others wrote, as it may be shown, and commands, as they may be typed."""

from __future__ import annotations

import os
import shlex
import subprocess
import unicodedata
from collections.abc import Sequence

LONGEST = 1000  # characters of what is said at once


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


def shorten(text: str, limit: int = LONGEST) -> str:
    """Leave out the middle of a text longer than `limit` characters: a path may have 100,000, and its end tells most.

    >>> shorten("/a/very/long/path/to/an/image.png", 20)
    '/a/ver...n/image.png'
    """
    if len(text) <= limit:
        return text
    end = (limit - 3) * 2 // 3
    return f"{text[: limit - 3 - end]}...{text[-end:]}"


def command_line(words: Sequence[str]) -> str:
    """Join words to what can be typed into a shell; those of Windows take double quotes alone."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
