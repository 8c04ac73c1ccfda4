"""What the terminal shows, and how often."""

from __future__ import annotations

import pytest

from cfa_cli.cli import render
from cfa_cli.records import Progress


def test_long_paths_are_cut_in_the_middle(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert render.short_path("photos/good/001.png") == "photos/good/001.png"
    long = "line1/" + "a" * 100 + "/007.png"
    shown = render.short_path(long)
    assert len(shown) == 50
    start, end = shown.split("...")
    assert long.startswith(start)
    assert long.endswith(end)
    assert end.endswith("/007.png")


@pytest.mark.parametrize("works", [[""], ["", "bolt (resnet18, seed 0)", "nut (resnet18, seed 0)"]])
def test_piped_a_line_every_ten_seconds_at_most(monkeypatch, capsys, works):
    now = 1000.0
    monkeypatch.setattr("cfa_cli.cli.render.time.monotonic", lambda: now)
    with render.Terminal() as terminal:
        for step in range(1, 101):  # a second each, and the phase changes every 7 s
            now += 1
            for work in works:
                terminal.progress(Progress(f"phase {step // 7}", step, 100), work)
    lines = capsys.readouterr().err.splitlines()
    assert 8 <= len(lines) <= 10
    assert all("/100" in line and "ETA" in line for line in lines)


def test_a_note_and_a_warning_are_shown_once(capsys):
    with render.Terminal() as terminal:
        for _ in range(3):
            terminal.note("The hub cannot be reached.")
            terminal.warn("The threshold rests on 1 image.")
    assert capsys.readouterr().err.splitlines() == [
        "The hub cannot be reached.",
        "Warning: The threshold rests on 1 image.",
    ]
