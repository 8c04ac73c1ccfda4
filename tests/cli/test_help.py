"""`--help`: panels, defaults, an example, plain names, the terminal's width."""

from __future__ import annotations

import pytest

from cfa_cli.config import PRESETS, FitConfig


def shown(cfa, *arguments):
    done = cfa(*arguments)
    assert (done.code, done.err) == (0, "")
    return done.out


@pytest.mark.parametrize("command", ["fit", "predict", "benchmark", "export", "info"])
def test_every_command_has_an_example_and_its_defaults(cfa, command):
    text = shown(cfa, command, "--help")
    assert f"Example: cfa {command} " in text
    assert "[default: " in text
    assert "{" not in text
    assert max(map(len, text.splitlines())) == 200  # COLUMNS


def test_the_options_of_fit_stand_in_panels_with_the_defaults_of_each_preset(cfa):
    text = shown(cfa, "fit", "--help")
    assert "Usage: cfa fit [OPTIONS] FOLDER" in text
    for panel in ("Files", "Input", "Backbone", "Training", "Threshold", "Computing", "Messages"):
        assert f"─ {panel} ─" in text
    assert f"[default: {FitConfig().epochs}; paper: {PRESETS['paper'].epochs}]" in text
    assert "[default: auto; fast: small; paper: 224x224]" in text
    assert f"[default: {FitConfig().lr}]" in text


def test_the_root(cfa):
    text = shown(cfa)
    assert text == shown(cfa, "--help") == shown(cfa, "-h")
    assert "--install-completion" in text
    assert shown(cfa, "-V") == shown(cfa, "--version")
