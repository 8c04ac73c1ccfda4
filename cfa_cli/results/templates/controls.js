// Threshold, filters and order.
const slider = byId("slider"), exact = byId("threshold"), STEPS = 1000;
const counted = (rows_) => rows_.reduce((sum, row) => sum + (row.score > state.threshold), 0);

function visibleRows() {
  const verdict = byId("verdict").value, folder = byId("folder").value, order = byId("sort").value;
  const text = byId("text").value.trim().toLocaleLowerCase();
  const shown = rows.filter((row) => {
    if (folder && row.folder !== folder) return false;
    if (text && !row.path.toLocaleLowerCase().includes(text)) return false;
    if (verdict === "near") return isNear(row);
    if (verdict === "misfit") return row.misfit !== null;
    if (verdict === "missed" || verdict === "false alarm") return isWrong(row, verdict);
    return !verdict || verdictOf(row) === verdict;
  });
  const last = (row, value) => (row.score === null ? Infinity : value); // what could not be read comes last
  const keys = {
    high: (row) => last(row, -row.score),
    low: (row) => last(row, row.score),
    near: (row) => last(row, Math.abs(row.score - state.threshold)),
  };
  const key = keys[order];
  return key ? shown.sort((a, b) => key(a) - key(b) || a.index - b.index) : shown;
}

function update() {
  const anomalous = counted(scored), unreadable = rows.length - scored.length;
  const near = scored.filter(isNear).length;
  const flagged = data.holdout.filter((score) => score > state.threshold).length;
  byId("count-anomalous").textContent = anomalous;
  byId("count-good").textContent = scored.length - anomalous;
  byId("count-holdout").textContent = `${flagged} of ${data.holdout.length}`;
  byId("counts").textContent = `${rows.length} images: ${anomalous} anomalous, ${scored.length - anomalous} good` +
    (near ? `, ${near} near the threshold` : "") + (unreadable ? `, ${unreadable} not readable` : "");
  byId("command").value = `${data.command} --threshold ${state.threshold} --force`;
  if (data.model) byId("calibrate").textContent = `cfa calibrate ${data.model[0]} --threshold ${state.threshold} --out ${data.model[1]}`;
  updateHistogram(anomalous);
  updateEvaluation();
  updateGallery(visibleRows());
  byId("shown").textContent = `${state.shown.length} shown`;
  byId("nothing").hidden = state.shown.length > 0;
}

function setThreshold(value, from) {
  if (!Number.isFinite(value) || value < 0) return;
  state.threshold = value;
  if (from !== slider) slider.value = Math.round(fraction(value) * STEPS);
  if (from !== exact) exact.value = Number(value.toPrecision(7));
  slider.setAttribute("aria-valuetext", short(value));
  update();
}
// Five digits, so that the command that is shown labels exactly as the page does.
const atFraction = (part) => Number((range.low + (range.high - range.low) * Math.min(1, Math.max(0, part))).toPrecision(5));

slider.addEventListener("input", () => setThreshold(atFraction(slider.value / STEPS), slider));
exact.addEventListener("input", () => { if (exact.value !== "") setThreshold(Number(exact.value), exact); });
byId("reset").addEventListener("click", () => setThreshold(data.threshold));
byId("calibrated").textContent = short(data.threshold);

const histogram = byId("histogram");
const drag = (event) => {
  const box = histogram.getBoundingClientRect();
  setThreshold(atFraction((event.clientX - box.left) / box.width));
};
histogram.addEventListener("pointerdown", (event) => { histogram.setPointerCapture(event.pointerId); drag(event); });
histogram.addEventListener("pointermove", (event) => { if (histogram.hasPointerCapture(event.pointerId)) drag(event); });

byId("copy").addEventListener("click", async () => {
  const command = byId("command");
  command.select(); // where the clipboard is closed to pages from disk, Ctrl-C is left
  let copied = false;
  try { await navigator.clipboard.writeText(command.value); copied = true; } catch { copied = document.execCommand("copy"); }
  byId("copy").textContent = copied ? "Copied" : "Press Ctrl-C";
  setTimeout(() => { byId("copy").textContent = "Copy command"; }, 1500);
});

const folders = new Map();
for (const row of rows) folders.set(row.folder, (folders.get(row.folder) ?? 0) + 1);
for (const [folder, count] of [...folders].sort(([a], [b]) => a.localeCompare(b))) {
  byId("folder").append(element("option", { value: folder, textContent: `${folderName(folder)} (${count})` }));
}
byId("folder").hidden = folders.size < 2;
for (const option of [...byId("verdict").options]) {
  if (option.className === "labelled" && !data.labelled) option.remove();
  if (option.value === "error" && scored.length === rows.length) option.remove();
  if (option.value === "near" && !rows.some((row) => row.near)) option.remove();
  if (option.value === "misfit" && !rows.some((row) => row.misfit)) option.remove();
}

for (const id of ["verdict", "folder", "sort", "text"]) {
  byId(id).addEventListener("input", () => { update(); scrollTo(0, Math.min(scrollY, gallery.offsetTop)); });
}
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("clear").addEventListener("click", () => { byId("filters").reset(); update(); byId("text").focus(); });
addEventListener("keydown", (event) => {
  if (event.key !== "/" || viewer.open || event.target.matches("input, textarea, select")) return;
  event.preventDefault();
  byId("text").focus();
});

byId("lasting").hidden = !data.model;
// Several models have a threshold each: no option sets all of them.
if (data.several) for (const id of ["command", "copy"]) (byId(id).closest("label") ?? byId(id)).hidden = true;

layOut();
setThreshold(data.threshold);
