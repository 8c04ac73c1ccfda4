import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfa_cli.errors import InputError
from cfa_cli.records import FitResult
from cfa_cli.results.report import write_fit_report, write_report
from cfa_cli.results.writer import ResultWriter
from tests.results.runs import WARNING, make_bundle, make_failure, make_prediction

SPOT = [[12, 10, 6, 5, 30, 14.5, 12, 2, 13, 11]]  # box, area, centroid, peak
HOSTILE = "</script><script>alert(1)</script><!-- \u2028 &amp; '\".png"


class Page(HTMLParser):
    """The elements of a page: (tag, attributes), and the text of each."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts = [], []
        self.feed(text)
        self.texts = [found.strip() for found in self.texts]

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data

    def text_of(self, **attributes):
        places = [i for i, (_, found) in enumerate(self.elements) if attributes.items() <= found.items()]
        return self.texts[places[0]]

    def tags(self):
        return [tag for tag, _ in self.elements]


def report(out, predictions, command=("cfa", "predict", "in"), save=frozenset({"overlay"}), **options):
    bundle = make_bundle()
    with ResultWriter(out, bundle, save) as writer:
        for prediction in predictions:
            writer.write(prediction)
    text = write_report(out, bundle, command=command, **options).read_text(encoding="utf-8")
    page = Page(text)
    return text, page, json.loads(page.text_of(id="data"))


def test_rows_are_in_the_page_with_the_way_to_their_files(tmp_path):
    folder = tmp_path / "in put"
    predictions = [
        make_prediction(folder / "a#1.jpg", 2.0, size=(40, 48)),
        make_failure(folder / "b.png"),
        replace(make_prediction(folder / "c.tif", 1.0), near_threshold=True),  # no browser shows it: a copy is written
    ]
    _, _, data = report(tmp_path / "out", predictions)
    rest = [None, None, None, False]
    assert data["rows"] == [  # the spot lies at columns and rows 8 to 11 of 32
        [str(folder / "a#1.jpg"), "a#1", 2, 12.346, None, "../in%20put/a%231.jpg", 48, 40, None, SPOT, *rest],
        [str(folder / "b.png"), "b", None, None, "it is damaged.", "../in%20put/b.png", 0, 0, None, [], *rest],
        [str(folder / "c.tif"), "c", 1, 12.346, None, "report/c.full.jpg", 48, 40, None, [], None, None, True, False],
    ]
    assert (tmp_path / "out" / "report" / "c.full.jpg").is_file()
    assert data["threshold"] == 1.5
    assert data["holdout"] == [0.9, 1.0, 1.1, 1.4, 1.6]
    assert data["saved"] == ["overlay"]
    assert data["labelled"] is False


def test_a_score_that_is_the_threshold_is_not_over_it(tmp_path):
    limit = float(np.float32(2.5614264))  # 2.56142640113..., and less than that in the nine digits of the table
    prediction = make_prediction(tmp_path / "a.png", limit, threshold=limit)
    bundle = make_bundle(threshold=limit)
    with ResultWriter(tmp_path, bundle, frozenset()) as writer:
        writer.write(prediction)
    page = Page(write_report(tmp_path, bundle, command=["cfa"]).read_text(encoding="utf-8"))
    data = json.loads(page.text_of(id="data"))
    assert data["rows"][0][2] == data["threshold"] == limit


def test_hostile_names_stay_text(tmp_path):
    text, page, data = report(tmp_path / "<b>out", [make_failure(Path(HOSTILE), error=HOSTILE)])
    assert data["rows"][0][0] == HOSTILE
    assert data["rows"][0][4] == HOSTILE
    assert "alert(1)</script>" not in text
    assert page.tags().count("script") == 2  # the data, and the page's own
    assert "b" not in page.tags()
    assert "cfa report: <b>out" in page.texts


def test_the_page_asks_for_nothing_from_a_network(tmp_path):
    text, page, _ = report(tmp_path, [make_prediction(tmp_path / "a.png", 2.0)])
    assert set(re.findall(r"\w+://[\w.]+", text)) == {"http://www.w3.org"}  # SVG's name, not an address
    policy = next(found["content"] for _, found in page.elements if "http-equiv" in found)
    assert "default-src 'none'" in policy
    assert not [found for tag, found in page.elements if tag in ("link", "iframe") or "src" in found]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["cfa", "predict", "my photos", "--out", "maps"], "cfa predict 'my photos' --out maps"),
        (["cfa", "predict", "in", "--threshold", "2", "--force", "--json"], "cfa predict in --json"),
        (["cfa", "predict", "--threshold=2", "in", "--resume", "--max-fpr", "0.1"], "cfa predict in"),
        (["cfa", "predict", "--watch", "in", "--quiet"], "cfa predict in --quiet"),
        (["cfa", "predict", "--watch=in"], "cfa predict in"),
        ([], ""),  # from Python
    ],
)
def test_the_command_line_is_kept_but_for_what_the_page_sets(tmp_path, command, expected):
    _, page, data = report(tmp_path, [], command)
    assert data["command"] == expected
    (label,) = (found for _, found in page.elements if found.get("class") == "command")
    assert ("hidden" in label) == (not expected)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["cfa", "predict", "in"], ["cfa-model.safetensors", "cfa-model-calibrated.safetensors"]),
        (["cfa", "predict", "-m", "my m.safetensors", "in"], ["'my m.safetensors'", "'my m-calibrated.safetensors'"]),
        (["cfa", "predict", "in", "--model=a/b.safetensors"], ["a/b.safetensors", "a/b-calibrated.safetensors"]),
        (["cfa", "predict", "in", "-m", "m.onnx"], None),  # an exported model cannot be calibrated
        ([], None),
    ],
)
def test_the_model_that_the_lasting_command_calibrates(tmp_path, command, expected):
    _, _, data = report(tmp_path, [], command)
    assert data["model"] == expected


def test_the_report_can_hatch_what_is_ignored(tmp_path):
    """A picture to lay over any other: transparent on what is kept."""
    keep = np.ones((32, 32), np.float32)
    keep[:16] = 0
    half = replace(make_prediction(tmp_path / "a.png", 2.0, size=(600, 900)), keep=keep)
    whole = replace(make_prediction(tmp_path / "b.png", 2.0), keep=np.ones_like(keep))
    _, _, data = report(tmp_path / "out", [half, whole, make_prediction(tmp_path / "c.png", 2.0)])
    assert [path.name for path in (tmp_path / "out" / "report").glob("*.ignored.png")] == ["a.ignored.png"]
    with Image.open(tmp_path / "out" / "report" / "a.ignored.png") as picture:
        assert (picture.mode, picture.size) == ("RGBA", (320, 213))
        alpha = np.asarray(picture)[..., 3]
    assert not alpha[110:].any()
    assert (alpha[:100] > 0).all()
    assert 0.2 < (alpha[:100] == 255).mean() < 0.5  # the lines
    assert [row[-1] for row in data["rows"]] == [True, False, False]


def test_mvtecs_layout_is_recognised(tmp_path):
    test = tmp_path / "screw" / "test"
    paths = [test / "good" / "0.png", test / "bent" / "0.png", test / "good" / "1.png"]
    predictions = [make_prediction(path, 1.0, f"{path.parent.name}/{path.name}") for path in paths]
    _, page, data = report(tmp_path / "a", predictions, metrics={"AUPRO": 0.87654, "Pixel AUROC": None})
    assert [row[8] for row in data["rows"]] == [False, True, False]
    assert data["labelled"] is True
    assert "0.8765" in page.texts
    assert "Pixel AUROC" not in page.texts  # not defined: not shown
    _, _, data = report(tmp_path / "b", predictions[::2])  # good ones alone: nothing to compare
    assert data["labelled"] is False
    _, _, data = report(tmp_path / "c", [*predictions, make_prediction(tmp_path / "else.png", 1.0)])
    assert data["labelled"] is False


def test_the_model_and_its_warning_are_shown(tmp_path):
    _, page, _ = report(tmp_path, [])
    assert WARNING in "".join(page.texts)
    for text in ("resnet18", "embedded", "25, of which 5 for calibration", "32 × 32 px (width × height)"):
        assert text in page.texts


def test_notes_are_shown_once_each_as_they_are_at_the_end(tmp_path):
    notes = {"10 files left out: 10 x <.heic>.": None, WARNING: None}
    with ResultWriter(tmp_path, make_bundle(), notes=notes):
        notes["Later."] = None
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    shown = [text for (_, found), text in zip(page.elements, page.texts, strict=True) if found.get("role") == "note"]
    assert shown == [WARNING, "10 files left out: 10 x <.heic>.", "Later."]


def test_there_is_no_report_without_a_run(tmp_path):
    with pytest.raises(InputError, match="holds no results"):
        write_report(tmp_path, make_bundle(), command=["cfa"])


def fit_report(path, predictions, losses=(3.0, 2.0, 1.0), skipped=()):
    result = FitResult(make_bundle(), 80, 20, skipped, losses, 12.0, ("Few <images>.",))
    text = write_fit_report(path, result, predictions).read_text(encoding="utf-8")
    return Page(text)


def test_fits_report_shows_the_most_unusual_images_first(tmp_path):
    scores = [1.0 + (i * 37 % 100) / 100 for i in range(100)]
    predictions = (make_prediction(tmp_path / f"<i>{i}.png", score) for i, score in enumerate(scores))
    page = fit_report(tmp_path / "report.html", predictions, skipped=(("x.png", "it is damaged."),))
    shown = [text for (tag, _), text in zip(page.elements, page.texts, strict=True) if tag == "strong"]
    top = sorted(scores, reverse=True)[:12]
    assert [float(text.split()[0]) for text in shown] == pytest.approx(top)
    assert all("over the threshold" in text for text in shown)
    images = [found for tag, found in page.elements if tag == "img"]
    sheet = [found["title"] for found in images if "title" in found]
    assert len(images) - len(sheet) == 12
    assert sheet == [f"<i>{i}.png" for i in range(0, 100, 3)]  # evenly over all images
    assert all(found["src"].startswith("data:image/jpeg;base64,") for found in images)
    assert "i" not in page.tags()
    everything = "".join(page.texts)
    for text in ("Few <images>.", WARNING, "x.png: it is damaged.", "80 images to train on, 20 held out, 12 s"):
        assert text in everything


def test_fits_report_draws_the_losses_and_the_held_out_scores(tmp_path):
    page = fit_report(tmp_path / "report.html", [])
    (points,) = (found["points"] for tag, found in page.elements if tag == "polyline")
    corners = [tuple(map(float, point.split(","))) for point in points.split()]
    assert corners == [(0, 10), (300, 85), (600, 160)]
    bars = [found for tag, found in page.elements if tag == "rect"]
    assert len(bars) == 5
    (line,) = (float(found["x1"]) for tag, found in page.elements if tag == "line")
    # Four of the five held-out scores lie below the threshold.
    assert sum(float(bar["x"]) < line for bar in bars) == 4


@pytest.mark.parametrize("losses", [(), (2.0,), (1.0, 1.0), (1.0, float("nan"))])
def test_fits_report_stands_odd_losses(tmp_path, losses):
    failed = replace(make_prediction(tmp_path / "a.png", 1.0), score=None, image=None, score_map=None, error="no")
    page = fit_report(tmp_path / "report.html", [failed], losses=losses)
    assert "nan" not in "".join(found.get("points", "") for _, found in page.elements)


@pytest.mark.parametrize("threshold", [0.9, 1.1, 1.23, 1.6, 5.0])
def test_no_bar_of_fits_histogram_stands_on_both_sides_of_the_threshold(tmp_path, threshold):
    bundle = make_bundle(threshold=threshold)
    result = FitResult(bundle, 80, 20, (), (1.0,), 12.0, ())
    page = Page(write_fit_report(tmp_path / "report.html", result, []).read_text(encoding="utf-8"))
    (line,) = (float(found["x1"]) for tag, found in page.elements if tag == "line")
    bars = [(float(f["x"]), float(f["width"])) for tag, f in page.elements if tag == "rect"]
    titles = [text for (tag, _), text in zip(page.elements, page.texts, strict=True) if tag == "title"]
    counts = [int(text.split()[0]) for text in titles[1:]]  # the first is the page's
    assert all(x + width <= line or x >= line for x, width in bars)
    left = sum(count for (x, _), count in zip(bars, counts, strict=True) if x < line)
    assert left == sum(score <= threshold for score in bundle.calibration.holdout_scores)
    assert sum(counts) == 5


def test_the_loss_of_one_epoch_is_a_number(tmp_path):
    page = fit_report(tmp_path / "one.html", [], losses=(0.123456,))
    assert "0.1235" in page.texts
    assert "polyline" not in page.tags()
    page = fit_report(tmp_path / "none.html", [], losses=())
    assert "polyline" not in page.tags()
    assert any("No epochs" in text for text in page.texts)
