"""report.html in a real browser, opened from disk."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

from cfa_cli.results.report import write_report
from cfa_cli.results.writer import ResultWriter
from tests.results.runs import make_bundle, make_failure, make_prediction, write_photograph

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
HOSTILE = "<img src=x onerror=alert(1)> #1?&.png"
SCORES = {  # MVTec's layout; the threshold is 1.5
    "good/0.png": 0.7,
    "good/1.png": 0.9,
    "good/2.png": 1.6,
    "bent/0.png": 1.2,
    "bent/1.png": 2.0,
    f"bent/{HOSTILE}": 2.5,
}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Six images and one that could not be read."""
    folder = tmp_path_factory.mktemp("small")
    with ResultWriter(folder / "out", make_bundle(), frozenset({"overlay"})) as writer:
        for name, score in SCORES.items():
            path = folder / "test" / name
            write_photograph(path)
            writer.write(make_prediction(path, score, name))
        writer.write(make_failure(folder / "test" / "bent" / "broken.png"))
    return write_report(folder / "out", make_bundle(), command=["cfa", "predict", "test"])


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """2,000 rows without pictures."""
    out = tmp_path_factory.mktemp("large")
    prediction = replace(make_prediction(Path("x.png"), 1.0), image=None, score_map=None)
    with ResultWriter(out, make_bundle(), frozenset()) as writer:
        for index in range(2000):
            source = replace(prediction.source, path=out / f"{index:04}.png", name=f"{index:04}.png")
            writer.write(replace(prediction, source=source, score=0.5 + index / 1000))
    return write_report(out, make_bundle(), command=["cfa", "predict", "in"])


@pytest.fixture
def open_page(browser):
    """Open a report; at the end it must have raised no error and asked for nothing but files."""
    problems, contexts = [], []

    def open_page(report, **options):
        context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: problems.extend([request.url] * (urlsplit(request.url).scheme != "file")))
        page.goto(report.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def wait_for(page, condition):
    """Until the expression is true; the page's own policy forbids playwright's way of waiting in it."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


def tiles(page):
    """Name and verdict of the tiles, in order."""
    return [
        (
            re.sub(r"^\u200e", "", tile.locator(".name").inner_text()),
            tile.locator(".badge").get_attribute("class").split()[1],
        )
        for tile in sorted(page.locator(".tile").all(), key=lambda tile: int(tile.get_attribute("data-place")))
    ]


def names(page):
    return [name for name, _ in tiles(page)]


def set_range(page, value):
    page.locator("#slider").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
    )


def test_scores_near_the_threshold_are_marked_until_it_is_moved(tmp_path, open_page):
    with ResultWriter(tmp_path / "out", make_bundle(), frozenset({"overlay"})) as writer:
        for name, score, near in (("a.png", 1.4, True), ("b.png", 3.0, False), ("c.png", 1.6, True)):
            write_photograph(tmp_path / name)
            writer.write(replace(make_prediction(tmp_path / name, score), near_threshold=near))
    page = open_page(write_report(tmp_path / "out", make_bundle(), command=["cfa", "predict", "in"]))
    marked = page.locator(".tile .near:not([hidden])")
    assert marked.count() == 2
    assert "2 near the threshold" in page.locator("#counts").inner_text()
    page.select_option("#verdict", "near")
    assert tiles(page) == [("c.png", "anomalous"), ("a.png", "good")]
    set_range(page, 900)
    assert (tiles(page), marked.count()) == ([], 0)
    assert "near" not in page.locator("#counts").inner_text()
    page.locator("#reset").click()
    assert names(page) == ["c.png", "a.png"]


def test_the_gallery_is_sorted_by_score_and_shows_pictures(small, open_page):
    page = open_page(small)
    assert tiles(page) == [
        *((f"bent/{HOSTILE}", "anomalous"), ("bent/1.png", "anomalous"), ("good/2.png", "anomalous")),
        *(("bent/0.png", "good"), ("good/1.png", "good"), ("good/0.png", "good"), ("bent/broken.png", "error")),
    ]
    assert page.locator("#counts").inner_text() == "7 images: 3 anomalous, 3 good, 1 not readable"
    wait_for(page, "[...document.querySelectorAll('.tile img')].every((image) => image.naturalWidth === 48)")
    assert page.locator(".tile img").count() == 6
    page.locator("#sort").select_option("low")
    assert names(page)[0] == "good/0.png"
    page.locator("#sort").select_option("near")
    assert names(page)[:2] == ["good/2.png", "bent/0.png"]
    page.locator("#sort").select_option("input")
    assert names(page) == [*SCORES, "bent/broken.png"]


def test_the_slider_relabels_at_once(small, open_page):
    page = open_page(small)
    set_range(page, 0)
    assert page.locator("#count-anomalous").inner_text() == "6"
    assert page.locator("#count-holdout").inner_text() == "5 of 5"
    assert {verdict for _, verdict in tiles(page)} == {"anomalous", "error"}
    page.locator("#threshold").fill("1.85")
    assert page.locator("#count-anomalous").inner_text() == "2"
    assert page.locator("#count-good").inner_text() == "4"
    assert page.locator("#count-holdout").inner_text() == "0 of 5"
    assert dict(tiles(page))["good/2.png"] == "good"
    assert page.locator("#command").input_value() == "cfa predict test --threshold 1.85 --force"
    lasting = "cfa calibrate cfa-model.safetensors --threshold 1.85 --out cfa-model-calibrated.safetensors"
    assert page.locator("#calibrate").inner_text() == lasting
    page.locator("#slider").focus()
    page.keyboard.press("Home")
    assert page.locator("#count-anomalous").inner_text() == "6"
    page.locator("#reset").click()
    assert page.locator("#command").input_value().endswith("--threshold 1.5 --force")
    box = page.locator("#histogram").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 1, box["y"] + 20)
    assert page.locator("#count-anomalous").inner_text() == "0"


def test_the_counts_against_the_folders(small, open_page):
    page = open_page(small)

    def confusion():
        return [page.locator(f"#{name}").inner_text() for name in ("hits", "missed", "false-alarms", "passed")]

    assert confusion() == ["2", "1", "1", "2"]
    # Of 9 pairs of a defect and a good image, only (1.2, 1.6) is in the wrong order.
    assert page.locator("#auroc").inner_text() == f"{8 / 9:.4f}"
    # Best is a threshold below 1.2 and above 0.9: all defects, and one false alarm.
    assert page.locator("#f1-max").inner_text() == f"{6 / 7:.4f}"
    assert page.locator("#f1").inner_text() == f"{4 / 6:.4f}"
    page.locator("#verdict").select_option("missed")
    assert names(page) == ["bent/0.png"]
    page.locator("#verdict").select_option("false alarm")
    assert names(page) == ["good/2.png"]
    page.locator("#threshold").fill("1.7")
    assert confusion() == ["2", "1", "0", "3"]
    assert names(page) == []


def test_filters_filter(small, open_page):
    page = open_page(small)
    page.locator("#verdict").select_option("good")
    assert names(page) == ["bent/0.png", "good/1.png", "good/0.png"]
    page.locator("#folder").select_option(label="good (3)")
    assert names(page) == ["good/1.png", "good/0.png"]
    page.keyboard.press("Escape")
    page.locator("body").press("/")
    page.keyboard.type("0.P")
    assert names(page) == ["good/0.png"]
    assert page.locator("#shown").inner_text() == "1 shown"
    page.keyboard.type("x")
    assert names(page) == []
    page.locator("#clear").click()
    assert len(names(page)) == 7


def test_keys_move_through_the_gallery_and_the_pictures(small, open_page):
    page = open_page(small)

    def focus_is_on(name):
        wait_for(page, f"document.activeElement.querySelector('.name')?.textContent.slice(1) === '{name}'")

    page.locator(".tile").first.focus()
    page.keyboard.press("ArrowRight")
    focus_is_on("bent/1.png")
    page.keyboard.press("End")
    focus_is_on("bent/broken.png")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    viewer, picture = page.locator("#viewer"), page.locator("#picture")
    assert viewer.get_attribute("open") is not None
    assert HOSTILE in page.locator("#viewer-name").inner_text()

    def shown(folder):
        wait_for(
            page,
            "(() => { const p = document.querySelector('#picture'); return p.complete && p.naturalWidth === 48; })()",
        )
        return f"/{folder}/" in "/" + picture.get_attribute("src")

    assert shown("overlays")
    page.keyboard.press("2")
    assert shown("test")
    page.keyboard.press("3")
    assert shown("report")
    assert "heat" in picture.evaluate("(image) => getComputedStyle(image).filter")
    page.keyboard.press("4")
    assert shown("report")
    assert picture.get_attribute("src").endswith(".mask.png")
    assert viewer.locator("[aria-checked=true]").inner_text() == "4 Mask"
    page.keyboard.press("ArrowRight")
    assert "bent/1.png" in page.locator("#viewer-name").inner_text()
    page.keyboard.press("z")
    assert picture.bounding_box()["width"] == 48
    page.keyboard.press("z")
    assert picture.bounding_box()["width"] == 4 * 48
    page.keyboard.press("End")
    assert not picture.is_visible()
    assert page.locator("#viewer-note").inner_text() == "it is damaged."
    page.keyboard.press("Escape")
    assert viewer.get_attribute("open") is None
    focus_is_on("bent/broken.png")


def test_the_mask_and_heatmap_are_drawn_from_the_map(small, open_page):
    page = open_page(small)
    page.locator(".tile").first.click()
    page.keyboard.press("4")
    wait_for(page, "document.querySelector('#picture').complete")

    def colour(x, y):
        """The picture's colour at a px of the source, as it is on the screen."""
        shot = cv2.imdecode(np.frombuffer(page.locator("#picture").screenshot(), np.uint8), cv2.IMREAD_COLOR_RGB)
        return tuple(int(value) for value in shot[y * 4, x * 4])

    assert colour(15, 12) == (255, 255, 255)  # the spot
    assert colour(40, 35) == (0, 0, 0)
    page.keyboard.press("3")
    red, _, blue = colour(15, 12)
    assert red > 240 > blue
    assert max(colour(40, 35)) < 20
    page.keyboard.press("4")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert "good/0.png" in page.locator("#viewer-name").inner_text()
    wait_for(page, "document.querySelector('#picture').complete")
    assert colour(15, 12) == (0, 0, 0)  # more than usual, and under the pixel threshold


def test_a_picture_that_has_gone_is_said(small, open_page):
    page = open_page(small)
    page.locator(".tile", has_text="bent/0.png").click()
    path = small.parent.parent / "test" / "bent" / "0.png"
    kept = path.read_bytes()
    path.unlink()
    try:
        page.keyboard.press("2")
        wait_for(page, "document.querySelector('#viewer-note').textContent.includes('not where it was')")
        assert page.locator("#picture").get_attribute("src") == "report/bent/0.jpg"
    finally:
        path.write_bytes(kept)


def test_2000_rows_scroll_with_few_elements(large, open_page):
    page = open_page(large)
    assert page.locator("#shown").inner_text() == "2000 shown"
    assert page.locator(".tile").count() < 100
    for _ in range(5):
        page.mouse.wheel(0, 20_000)
        page.wait_for_timeout(50)
        assert 4 <= page.locator(".tile").count() < 100
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_selector("text=0000.png")
    milliseconds = page.evaluate(
        "() => { const start = performance.now(); for (let i = 0; i < 100; i += 1) setThreshold(0.5 + i / 50);"
        " return (performance.now() - start) / 100; }"
    )
    assert milliseconds < 100  # a frame or two, with much to spare for a slow machine
    page.locator("#reset").click()
    assert page.locator("#count-anomalous").inner_text() == "999"
    page.locator(".tile").last.focus()
    page.keyboard.press("Home")
    assert page.evaluate("scrollY") < 400
    assert page.evaluate("document.activeElement.dataset.place") == "0"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark_in_any_width(small, open_page, scheme):
    page = open_page(small, color_scheme=scheme)
    for width in (360, 800, 1600):
        page.set_viewport_size({"width": width, "height": 700})
        wait_for(page, "document.documentElement.scrollWidth <= innerWidth")  # nothing to scroll sideways
        assert page.locator(".tile").count() > 0
    wait_for(page, "['.badge.good', '.badge.anomalous', '.badge.error'].every((b) => document.querySelector(b))")
    contrasts = page.evaluate("""() => {
        const light = (colour) => {
          const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = (node) => {
          for (let at = node; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (!/rgba\\(.*, 0\\)|transparent/.test(colour)) return light(colour);
          }
        };
        return ['h1', '#counts', '.warning', '.legend', '.badge.good', '.badge.anomalous', '.badge.error',
                '.tile .name', '.card dt', '.card dd', '#command', '#shown'].map((selector) => {
          const node = document.querySelector(selector);
          const [a, b] = [light(getComputedStyle(node).color), behind(node)].sort((x, y) => y - x);
          return [selector, (a + 0.05) / (b + 0.05)];
        });
    }""")
    assert [pair for pair in contrasts if pair[1] < 4.5] == []  # WCAG AA


def test_everything_that_can_be_used_has_a_name(small, open_page):
    page = open_page(small)
    unnamed = page.evaluate("""() => [...document.querySelectorAll('button, input, select, textarea, [role=img]')]
        .filter((node) => !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length))
        .map((node) => node.outerHTML)""")
    assert unnamed == []
    tile = page.get_by_role("button", name="bent/1.png, anomalous, score 2", exact=True)
    assert tile.count() == 1
    assert page.get_by_role("listitem").first.get_attribute("aria-setsize") == "7"


def test_no_bar_stands_on_both_sides_of_the_threshold(small, open_page):
    page = open_page(small)
    for value in ("1.5", "1.6", "0.9", "2.5", "0.1", "1.23"):
        page.locator("#threshold").fill(value)
        line = float(page.locator("#histogram .threshold").get_attribute("x1"))
        for kind, expected in (("good", "#count-good"), ("anomalous", "#count-anomalous")):
            bars = page.locator(f"#histogram rect.{kind}").all()
            assert sum(int(bar.get_attribute("data-count")) for bar in bars) == int(page.locator(expected).inner_text())
            for bar in bars:
                x, width = (float(bar.get_attribute(name)) for name in ("x", "width"))
                assert x + width <= line + 1e-6 if kind == "good" else x >= line - 1e-6


def test_regions_are_listed_and_shown(small, open_page):
    page = open_page(small)
    page.locator(".tile", has_text="bent/1.png").click()
    buttons = page.locator("#regions button").all()
    assert [button.inner_text()[:3] for button in buttons] == ["1: "]

    def shown():
        boxes = page.locator("#boxes rect").all()
        return sum(box.evaluate("(rect) => getComputedStyle(rect).visibility") == "visible" for box in boxes)

    assert shown() == 0
    buttons[0].hover()
    assert shown() == 2  # a light line on a dark one
    page.mouse.move(5, 5)
    assert shown() == 0
    buttons[0].click()
    page.mouse.move(5, 5)
    assert shown() == 2
    box, picture = page.locator("#boxes rect").last.bounding_box(), page.locator("#picture").bounding_box()
    # The spot covers columns and rows 8 to 11 of 32: columns 12 to 18 and rows 10 to 15 of 48 x 40 px, times 4.
    assert box["x"] - picture["x"] == pytest.approx(12 * 4, abs=8)
    assert box["y"] - picture["y"] == pytest.approx(10 * 4, abs=8)
    assert box["width"] == pytest.approx(6 * 4, abs=12)
    page.locator("#canvas").focus()
    page.keyboard.press("End")  # the one that could not be read has none
    assert page.locator("#regions button").count() == 0


def test_what_is_ignored_is_hatched_on_the_heatmap_and_the_mask(tmp_path, open_page):
    keep = np.ones((32, 32), np.float32)
    keep[:, 16:] = 0
    write_photograph(tmp_path / "a.png")
    with ResultWriter(tmp_path / "out", make_bundle(), frozenset({"overlay"})) as writer:
        writer.write(replace(make_prediction(tmp_path / "a.png", 2.0), keep=keep))
    page = open_page(write_report(tmp_path / "out", make_bundle(), command=["cfa"]))
    page.locator(".tile").first.click()
    hatching, picture = page.locator("#ignored"), page.locator("#picture")
    for key, shown in {"1": False, "2": False, "3": True, "4": True}.items():  # overlays are hatched by themselves
        page.keyboard.press(key)
        assert hatching.is_visible() is shown
    wait_for(page, "document.querySelector('#ignored').complete && document.querySelector('#picture').complete")
    assert hatching.bounding_box() == picture.bounding_box()
    shot = cv2.imdecode(np.frombuffer(page.locator("#frame").screenshot(), np.uint8), cv2.IMREAD_GRAYSCALE)
    left, right = shot[:, : shot.shape[1] // 2 - 9], shot[:, shot.shape[1] // 2 + 9 :]
    assert np.isin(left, (0, 255)).mean() > 0.8  # but for the edge of the spot, which is enlarged smoothly
    assert 0.15 < (right > 150).mean() < 0.6
    picture.click()  # the hatching does not catch the click
    assert page.locator("#zoom").get_attribute("aria-pressed") == "true"
