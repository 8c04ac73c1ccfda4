// The scores' histogram with the threshold, and the ROC curve.
const BINS = 64, WIDTH = 320, HEIGHT = 104, RUG = 12;

const threshold = shape("line", { class: "threshold", y1: 0, y2: HEIGHT + RUG + 4 });
const bars = shape("g", {});

(function drawHistogram() {
  const rug = data.holdout.map((score) => {
    const x = fraction(score) * WIDTH;
    return shape("line", { class: "holdout", x1: x, x2: x, y1: HEIGHT + 4, y2: HEIGHT + 4 + RUG });
  });
  const x = fraction(data.threshold) * WIDTH;
  const calibrated = shape("line", { class: "calibrated", x1: x, x2: x, y1: 0, y2: HEIGHT });
  byId("histogram").append(bars, ...rug, calibrated, threshold);
  byId("axis-low").textContent = short(range.low);
  byId("axis-high").textContent = short(range.high);
})();

// The threshold is an edge of two bins, so that no bar stands for good and for anomalous images.
function drawBars() {
  const width = WIDTH / BINS, at = fraction(state.threshold) * WIDTH, counts = new Map();
  for (const row of scored) {
    // A score that is the threshold is good: each bin holds its upper edge.
    const bin = Math.ceil(((row.score - state.threshold) / (range.high - range.low)) * BINS) - 1;
    counts.set(bin, (counts.get(bin) ?? 0) + 1);
  }
  const tallest = Math.max(1, ...counts.values());
  bars.replaceChildren(...[...counts].map(([bin, count]) => {
    // Square roots: one image must remain visible beside a thousand.
    const height = Math.max(2, HEIGHT * Math.sqrt(count / tallest));
    const left = Math.max(0, at + bin * width), right = Math.min(WIDTH, at + (bin + 1) * width);
    return shape("rect", {
      class: bin < 0 ? "good" : "anomalous", "data-count": count,
      x: left, width: Math.max(0, right - left - 0.6), y: HEIGHT - height, height,
    });
  }));
}

function updateHistogram(anomalous) {
  drawBars();
  const x = fraction(state.threshold) * WIDTH;
  threshold.setAttribute("x1", x);
  threshold.setAttribute("x2", x);
  byId("histogram").setAttribute(
    "aria-label",
    `Histogram of ${scored.length} scores from ${short(range.low)} to ${short(range.high)}; ` +
    `${anomalous} lie over the threshold of ${short(state.threshold)}.`,
  );
}

// Scores in falling order with the counts of good and defective images down to each: the ROC curve's corners.
const roc = (() => {
  if (!data.labelled) return null;
  const ordered = scored.slice().sort((a, b) => b.score - a.score);
  const defective = ordered.filter((row) => row.defect).length, good = ordered.length - defective;
  if (!defective || !good) return null;
  const corners = [[0, 0]];
  let hits = 0, alarms = 0, area = 0, bestF1 = 0;
  ordered.forEach((row, place) => {
    if (row.defect) hits += 1; else alarms += 1;
    if (place + 1 < ordered.length && ordered[place + 1].score === row.score) return;
    const [x, y] = corners[corners.length - 1];
    corners.push([alarms / good, hits / defective]);
    area += ((alarms / good - x) * (y + hits / defective)) / 2;
    bestF1 = Math.max(bestF1, (2 * hits) / (hits + alarms + defective));
  });
  return { corners, area, bestF1, defective, good };
})();

const point = shape("circle", { class: "point", r: 4.5 });
if (roc) {
  const place = ([x, y]) => [20 + 170 * x, 180 - 170 * y];
  byId("roc").append(
    shape("rect", { class: "frame", x: 20, y: 10, width: 170, height: 170 }),
    shape("line", { class: "chance", x1: 20, y1: 180, x2: 190, y2: 10 }),
    shape("polyline", { class: "curve", points: roc.corners.map((corner) => place(corner).join()).join(" ") }),
    point,
    shape("text", { x: 105, y: 195 }, "good images flagged"),
    shape("text", { x: -95, y: 13, transform: "rotate(-90)" }, "defects found"),
  );
  byId("auroc").textContent = roc.area.toFixed(4);
  byId("f1-max").textContent = roc.bestF1.toFixed(4);
  byId("evaluation").hidden = false;
}

function updateEvaluation() {
  if (!roc) return;
  let hits = 0, alarms = 0;
  for (const row of scored) if (row.score > state.threshold) { if (row.defect) hits += 1; else alarms += 1; }
  byId("hits").textContent = hits;
  byId("missed").textContent = roc.defective - hits;
  byId("false-alarms").textContent = alarms;
  byId("passed").textContent = roc.good - alarms;
  byId("f1").textContent = ((2 * hits) / (hits + alarms + roc.defective)).toFixed(4);
  point.setAttribute("cx", 20 + (170 * alarms) / roc.good);
  point.setAttribute("cy", 180 - (170 * hits) / roc.defective);
  byId("roc").setAttribute(
    "aria-label",
    `ROC curve, area ${roc.area.toFixed(4)}. At this threshold ${hits} of ${roc.defective} defects are found ` +
    `and ${alarms} of ${roc.good} good images are flagged.`,
  );
}
