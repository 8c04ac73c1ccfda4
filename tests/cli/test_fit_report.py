"""`cfa fit --report`."""

import json

from tests.conftest import GOOD_IMAGES, assert_refused, write_part


def test_a_page_about_the_training_is_written_beside_the_model(cfa, good_dir, tmp_path):
    options = ("--weights", "embedded", "--size", 64, "--epochs", 1, "--report", "--out", "part.safetensors")
    page = tmp_path / "part.html"
    outcome = cfa("fit", good_dir, *options)
    assert outcome.code == 0, outcome
    assert "part.html" in outcome.out
    text = page.read_text()
    assert text.count("data:image/jpeg") == GOOD_IMAGES + 12  # the contact sheet, and the most unusual ones
    assert "late/003.png" in text
    (tmp_path / "part.safetensors").unlink()
    assert_refused(cfa("fit", good_dir, *options), 3, "part.html exists already", "--force")


def test_what_is_too_small_to_be_seen_is_said_in_summary_info_json_and_report(cfa, tmp_path):
    for number in range(3):
        write_part(tmp_path / "good" / f"{number}.png", number, size=(96, 128))
    options = ("--weights", "embedded", "--size", 32, "--epochs", 0, "--out", "small.safetensors", "--force")
    said = "Images of 128 x 96 px are reduced to 32 x 32 (width x height): defects below about 16 px will be missed"
    summary = cfa("fit", tmp_path / "good", *options, "--report")
    assert said in " ".join(summary.out.split())
    assert said in " ".join(cfa("info", "small.safetensors").out.split())
    assert said in (tmp_path / "small.html").read_text()
    for document in (cfa("info", "small.safetensors", "--json"), cfa("fit", tmp_path / "good", *options, "--json")):
        found = json.loads(document.out)["visibility"]
        assert (found["reduction"], found["smallest_defect"]) == (4, 16)
        assert found["sentence"].startswith(said)
