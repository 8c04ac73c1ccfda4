"""What others wrote is shown without a terminal obeying it."""

from __future__ import annotations

import pytest

from cfa_cli.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Teile/Größe 3 — 良い.png", "Teile/Größe 3 — 良い.png"),
        ("at 10.41\u202fAM.png", "at 10.41\u202fAM.png"),  # a Mac's screenshot
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\r\nb\tc\0", r"a\r\nb\tc\x00"),
        ("\x9b31m\x85", r"\x9b31m\x85"),  # the same commands in one byte
        ("\u202egnp.exe\u2028", r"\u202egnp.exe\u2028"),
        ("caf\udce9.png", r"caf\udce9.png"),  # a byte that is no UTF-8
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, shown):
    assert printable(text) == shown
    printable(text).encode("utf-8")


def test_long_texts_are_cut():
    assert printable("x" * 100, 10) == "xxxxxxx..."
    assert printable("x" * 10, 10) == "x" * 10


def test_errors_notes_and_tables_go_through_it(cfa, tmp_path):
    outcome = cfa("info", "no\x1b[2Jthing.safetensors")
    assert r"no\x1b[2Jthing" in outcome.err
    assert "\x1b" not in outcome.err
