// One image at full size: overlay, image, heatmap or mask.
const viewer = byId("viewer"), picture = byId("picture"), canvas = byId("canvas");
const MAX_ENLARGEMENT = 4;
let opened = 0, view = "overlay", fullSize = false;

function source(row) {
  const saved = (kind) => data.saved.includes(kind);
  const grey = fileUrl("report", row.name, ".png");
  if (view === "image") return { url: row.url };
  if (view === "overlay") return { url: saved("overlay") ? fileUrl("overlays", row.name, ".png") : thumbnailUrl(row) };
  if (view === "heatmap") return saved("heatmap") ? { url: fileUrl("heatmaps", row.name, ".png") } : { url: grey, filter: "url(#heat)" };
  return saved("mask") ? { url: fileUrl("masks", row.name, ".png") } : { url: fileUrl("report", row.name, ".mask.png") };
}

function openViewer(place) {
  opened = place;
  if (!viewer.open) viewer.showModal();
  showPicture();
  canvas.focus();
}

function showPicture() {
  const row = state.shown[opened];
  const verdict = verdictOf(row);
  byId("viewer-name").textContent = row.path;
  byId("viewer-facts").textContent = row.score === null
    ? `${opened + 1} of ${state.shown.length} · not readable`
    : `${opened + 1} of ${state.shown.length} · ${verdictText[verdict]} · score ${short(row.score)}, ` +
      `threshold ${short(state.threshold)} · ${row.width} × ${row.height} px · ${Math.round(row.milliseconds ?? 0)} ms` +
      (row.model ? ` · model ${row.model}` : "") + (isNear(row) ? " · near the threshold" : "") + (row.misfit ? ` · this image is ${row.misfit}` : "");
  for (const button of viewer.querySelectorAll("[data-view]")) {
    const checked = button.dataset.view === view;
    button.setAttribute("aria-checked", checked);
    button.tabIndex = checked ? 0 : -1;
  }
  let note = row.error ?? "Keys: ← → next image, 1 to 4 view, z full size, Esc back";
  if ((view === "overlay" || view === "mask") && state.threshold !== data.threshold) note = `Drawn with the run's threshold, ${short(data.threshold)}.`;
  byId("viewer-note").textContent = note;
  picture.hidden = row.error !== null;
  byId("regions").replaceChildren();
  byId("boxes").replaceChildren();
  showIgnored(row);
  if (row.error !== null) return;
  showRegions(row);
  const { url, filter } = source(row);
  picture.alt = `${view} of ${row.path}`;
  picture.style.filter = filter ?? "";
  picture.onerror = () => {
    picture.onerror = null;
    byId("viewer-note").textContent = view === "image"
      ? "The image is not where it was when this report was written; its small overlay is shown."
      : "This picture is missing; the small overlay is shown.";
    picture.style.filter = "";
    picture.src = thumbnailUrl(row);
  };
  picture.src = url;
  fit();
  const next = state.shown[opened + 1];
  if (next && next.error === null) new Image().src = source(next).url;
}

// Overlays are hatched already; the image is shown as it is.
function showIgnored(row) {
  const hatching = byId("ignored");
  hatching.hidden = !row.ignored || row.error !== null || view === "overlay" || view === "image";
  if (!hatching.hidden) hatching.src = fileUrl("report", row.name, ".ignored.png");
}

// A button a region; the one that is pressed or pointed at has its box drawn on the picture.
function showRegions(row) {
  byId("boxes").setAttribute("viewBox", `0 0 ${row.width} ${row.height}`);
  row.regions.forEach(([left, top, width, height, area, , , peak], place) => {
    const box = { x: left, y: top, width, height };
    const boxes = shape("g", {});
    boxes.append(shape("rect", { ...box, class: "outer" }), shape("rect", box));
    byId("boxes").append(boxes);
    const button = element("button", { type: "button", textContent: `${place + 1}: ${width} × ${height} px, peak ${short(peak)}` });
    button.title = `From column ${left}, row ${top}; ${area} px`;
    button.setAttribute("aria-pressed", "false");
    const pressed = () => button.getAttribute("aria-pressed") === "true";
    const mark = (pointed) => boxes.classList.toggle("on", pointed || pressed());
    button.addEventListener("click", () => { button.setAttribute("aria-pressed", !pressed()); mark(true); });
    for (const name of ["mouseenter", "focus"]) button.addEventListener(name, () => mark(true));
    for (const name of ["mouseleave", "blur"]) button.addEventListener(name, () => mark(false));
    const item = element("div", {}, button);
    item.setAttribute("role", "listitem");
    byId("regions").append(item);
  });
}

function fit() {
  const row = state.shown[opened];
  if (!viewer.open || !row || !row.width) return;
  const factor = fullSize ? 1 : Math.min(MAX_ENLARGEMENT, canvas.clientWidth / row.width, canvas.clientHeight / row.height);
  picture.style.width = `${row.width * factor}px`;
  picture.style.height = `${row.height * factor}px`;
  picture.classList.toggle("full", fullSize);
  byId("zoom").setAttribute("aria-pressed", fullSize);
}

function move(step) {
  const place = opened + step;
  if (place < 0 || place >= state.shown.length) return;
  opened = place;
  showPicture();
}

function toggleZoom() { fullSize = !fullSize; fit(); }
function choose(name) { view = name; showPicture(); }

const viewButtons = [...viewer.querySelectorAll("[data-view]")];
viewButtons.forEach((button) => button.addEventListener("click", () => choose(button.dataset.view)));
byId("previous").addEventListener("click", () => move(-1));
byId("next").addEventListener("click", () => move(1));
byId("zoom").addEventListener("click", toggleZoom);
picture.addEventListener("click", toggleZoom);
byId("close").addEventListener("click", () => viewer.close());
viewer.addEventListener("close", () => goTo(opened));
viewer.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inGroup = event.target.closest("[data-view]");
  const number = "1234".indexOf(event.key);
  if (inGroup && event.key.startsWith("Arrow")) {
    const step = event.key === "ArrowRight" || event.key === "ArrowDown" ? 1 : -1;
    const button = viewButtons[(viewButtons.indexOf(inGroup) + step + 4) % 4];
    choose(button.dataset.view);
    button.focus();
  } else if (event.key === "ArrowLeft" && !fullSize) move(-1);
  else if (event.key === "ArrowRight" && !fullSize) move(1);
  else if (event.key === "PageUp") move(-1);
  else if (event.key === "PageDown") move(1);
  else if (event.key === "Home") move(-opened);
  else if (event.key === "End") move(state.shown.length - 1 - opened);
  else if (event.key === "z") toggleZoom();
  else if (number >= 0) choose(viewButtons[number].dataset.view);
  else return;
  event.preventDefault();
});
addEventListener("resize", fit);
