"""`--ray` on the command line, without Ray."""

import ast
from pathlib import Path

import pytest

import cfa_cli
from cfa_cli.cli.options import complete_ray
from cfa_cli.errors import ExitCode
from tests.conftest import assert_refused


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("predict photos --ray", "predict photos --ray local"),
        ("predict --ray photos", "predict --ray local photos"),
        ("predict --ray --json photos", "predict --ray local --json photos"),
        ("predict --ray auto photos", "predict --ray auto photos"),
        ("predict --ray 10.0.0.1:6379 photos", "predict --ray 10.0.0.1:6379 photos"),
        ("predict --ray ray://head:10001 photos", "predict --ray ray://head:10001 photos"),
        ("predict --ray [::1]:6379 photos", "predict --ray [::1]:6379 photos"),
        ("predict --ray=auto photos", "predict --ray=auto photos"),
        ("predict photos", "predict photos"),
    ],
)
def test_the_address_may_be_left_out(typed, meant):
    assert complete_ray(typed.split()) == meant.split()


@pytest.mark.parametrize(
    ("options", "code", "message", "hint"),
    [
        (["--ray=photos/"], ExitCode.USAGE, "--ray takes the address of a Ray cluster, not 'photos/'", "HOST:PORT"),
        (["--ray", "ray://head:10001"], ExitCode.USAGE, "is an address of Ray Client", "--ray auto"),
        (["--ray", "--device", "cuda:1"], ExitCode.USAGE, "--device cuda:1 does not go with --ray", "--device cuda"),
        (["--ray"], ExitCode.DEVICE, "--ray needs Ray, which is not installed", "pip install 'cfa-cli[ray]'"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_done(cfa, good_dir, model, monkeypatch, options, code, message, hint):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_refused(cfa("predict", good_dir, "--model", model, *options), code, message, hint)


def test_ray_goes_with_no_stream(cfa, good_dir, model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert_refused(cfa("predict", "-", "--model", model, "--ray"), 2, "not arrays and not `-`", "Leave --ray out")
    assert_refused(cfa("predict", "--watch", good_dir, "--model", model, "--ray"), 2, "--watch", "Leave one")
    assert_refused(cfa("benchmark", good_dir, "--jobs", 2, "--ray"), 2, "--jobs is for one machine", "Leave one")


def test_ray_is_imported_in_functions_alone():
    for path in Path(cfa_cli.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "ray" for name in names), path
