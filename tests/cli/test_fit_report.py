"""`cfa fit --report`."""

from tests.conftest import GOOD_IMAGES, assert_refused


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
