"""The runners in examples/deploy, each without cfa and torch, against `predict`."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfa_cli import predict
from cfa_cli.bundle import load_bundle
from cfa_cli.engine.export import export
from cfa_cli.engine.export_options import ExportOptions
from tests.engine.exports import make_bundle

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

DEPLOY = Path(__file__).parents[2] / "examples/deploy"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
RUNTIME = Path(os.environ.get("ONNXRUNTIME_ROOT", "/usr"))
WEB = Path(os.environ.get("ONNXRUNTIME_WEB", DEPLOY / "browser/node_modules/onnxruntime-web"))


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """An exported model and two images, of other sizes than the network's, with the scores of `predict`."""
    folder = tmp_path_factory.mktemp("line")
    model = make_bundle(folder / "model.safetensors", size=(48, 64))
    export(model, folder / "model.onnx", ExportOptions(resize=True))
    rng = np.random.default_rng(3)
    for name, shape in (("a", (70, 90)), ("b", (41, 57))):
        image = cv2.resize(rng.integers(0, 255, (9, 11, 3), dtype=np.uint8), shape[::-1])
        cv2.imwrite(str(folder / f"{name}.png"), image)
        cv2.imwrite(str(folder / f"{name}.ppm"), image)
    images = [folder / "a.png", folder / "b.png"]
    scores = {p.source.path.stem: p.score for p in predict(load_bundle(model), images, precision="float32")}
    return folder, scores


def scores_of(output):
    """`label score ... path` a line, as the runners print it."""
    rows = [row.split() for row in output.splitlines()]
    return {Path(row[-1]).stem: (row[0], float(row[1])) for row in rows}


def check(found, expected, bundle):
    threshold = load_bundle(bundle).calibration.threshold
    assert {name: score for name, (_, score) in found.items()} == pytest.approx(expected, rel=1e-4)
    for name, (label, _) in found.items():
        assert label == ("anomalous" if expected[name] > threshold else "good")


def test_python_without_torch(line, tmp_path):
    folder, expected = line
    pytest.importorskip("PIL", reason="Pillow is not installed")
    (tmp_path / "torch.py").write_text("raise ImportError('no torch on the line')")
    (tmp_path / "cfa_cli.py").write_text("raise ImportError('no cfa on the line')")
    done = subprocess.run(
        [sys.executable, DEPLOY / "run_onnx.py", folder / "model.onnx", folder / "a.png", folder / "b.png"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    check(scores_of(done.stdout), expected, folder / "model.safetensors")
    assert cv2.imread(str(tmp_path / "a_map.png")).shape == (70, 90, 3)


def test_c_plus_plus(line, tmp_path):
    folder, expected = line
    places = [RUNTIME / "include", RUNTIME / "include/onnxruntime", RUNTIME / "include/onnxruntime/core/session"]
    include = next((place for place in places if (place / "onnxruntime_c_api.h").exists()), None)
    if include is None or shutil.which("g++") is None:
        pytest.skip("ONNX Runtime's headers are not there: name their folder's parent in ONNXRUNTIME_ROOT")
    program, library = tmp_path / "run_onnx", RUNTIME / "lib"
    build = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", DEPLOY / "run_onnx.cpp", "-o", program]
    subprocess.run([*build, "-I", include, "-L", library, "-lonnxruntime"], check=True)
    done = subprocess.run(
        [program, folder / "model.onnx", folder / "a.ppm", folder / "b.ppm"],
        env={**os.environ, "LD_LIBRARY_PATH": str(library)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    check(scores_of(done.stdout), expected, folder / "model.safetensors")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
@pytest.mark.skipif(not WEB.is_dir(), reason="onnxruntime-web is not there: run npm install in examples/deploy/browser")
def test_browser(line, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    folder, expected = line
    shutil.copy(DEPLOY / "browser/index.html", tmp_path)
    shutil.copy(folder / "model.onnx", tmp_path)
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules/onnxruntime-web").symlink_to(WEB.resolve())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, playwright.sync_playwright() as running:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/index.html")
            status = page.get_by_role("status")
            playwright.expect(status).to_contain_text("ready", timeout=60_000)
            found = {}
            for name in expected:
                drop_image(page, folder / f"{name}.png")
                playwright.expect(status).to_contain_text("ms", timeout=30_000)
                text = status.inner_text()
                found[name] = text.split(":")[0], float(re.search(r"score ([\d.e+-]+)", text)[1])
                assert page.locator("#overlay").is_visible()
                page.evaluate("document.getElementById('result').textContent = ''")
        finally:
            browser.close()
            server.shutdown()
    check(found, expected, folder / "model.safetensors")


def drop_image(page, path):
    """Drag a file onto the page."""
    page.evaluate(
        """([bytes, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        }""",
        [list(path.read_bytes()), path.name],
    )
