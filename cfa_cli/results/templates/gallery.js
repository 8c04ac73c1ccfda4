// The gallery holds only the tiles that can be seen: ten thousand images scroll as smoothly as ten.
const GAP = 12, CAPTION = 56, SPARE_ROWS = 2;
const gallery = byId("gallery");
const tiles = new Map(); // place in state.shown -> { holder, button, row, ... }
let grid = { columns: 1, width: 0, height: 0 };
let focused = 0; // the one tile that Tab reaches; arrow keys move on from it

function layOut() {
  const width = gallery.clientWidth;
  const columns = Math.max(1, Math.floor((width + GAP) / ((width < 500 ? 150 : 205) + GAP)));
  const tile = (width - GAP * (columns - 1)) / columns;
  grid = { columns, width: tile, height: Math.round(tile * 0.75) + CAPTION };
  for (const [place, tile_] of tiles) position(tile_, place);
  showTiles();
}

function position(tile, place) {
  const style = tile.holder.style;
  style.width = `${grid.width}px`;
  style.height = `${grid.height}px`;
  style.left = `${(place % grid.columns) * (grid.width + GAP)}px`;
  style.top = `${Math.floor(place / grid.columns) * (grid.height + GAP)}px`;
}

function showTiles() {
  const lines = Math.ceil(state.shown.length / grid.columns), pitch = grid.height + GAP;
  gallery.style.height = `${Math.max(0, lines * pitch - GAP)}px`;
  const above = -gallery.getBoundingClientRect().top;
  const from = Math.max(0, Math.floor(above / pitch) - SPARE_ROWS) * grid.columns;
  const to = Math.min(state.shown.length, (Math.ceil((above + innerHeight) / pitch) + SPARE_ROWS) * grid.columns);
  const keep = tiles.get(focused)?.button === document.activeElement ? focused : -1;
  for (const [place, tile] of tiles) {
    if ((place < from || place >= to) && place !== keep) { tile.holder.remove(); tiles.delete(place); }
  }
  for (let place = from; place < to; place += 1) if (!tiles.has(place)) tiles.set(place, makeTile(place));
  if (!tiles.has(focused) && tiles.size) setFocused(Math.max(from, 0));
}

function makeTile(place) {
  const row = state.shown[place];
  const badge = element("span", { className: "badge" });
  const score = element("span", { className: "number", textContent: row.score === null ? "" : short(row.score) });
  const near = element("span", { className: "near", textContent: "near the threshold" });
  const frame = element("span", { className: "frame" });
  const picture = element("img", { alt: "", decoding: "async" });
  picture.onerror = () => frame.replaceChildren(element("span", { className: "problem", textContent: "no picture was saved" }));
  if (row.error === null) picture.src = thumbnailUrl(row);
  frame.append(row.error === null ? picture : element("span", { className: "problem", textContent: row.error }));
  // The mark keeps the punctuation of a path in its place where the line is cut at its left end.
  const name = element("span", { className: "name", textContent: `\u200e${shortName(row)}`, title: row.path });
  const button = element("button", { className: "tile", type: "button", tabIndex: place === focused ? 0 : -1 },
    frame, element("span", { className: "caption" }, badge, score, near, ...(row.misfit ? [flag(row)] : [])), name);
  const holder = element("div", {}, button);
  holder.setAttribute("role", "listitem");
  button.dataset.place = place;
  const tile = { holder, button, badge, near, row };
  label(tile, place);
  position(tile, place);
  gallery.append(holder);
  return tile;
}

function flag(row) {
  return element("span", { className: "misfit", textContent: "unlike training", title: `This image is ${row.misfit}.` });
}

function label(tile, place) {
  const verdict = verdictOf(tile.row);
  tile.badge.className = `badge ${verdict}`;
  tile.badge.textContent = verdictText[verdict];
  tile.near.hidden = !isNear(tile.row);
  tile.holder.setAttribute("aria-setsize", state.shown.length);
  tile.holder.setAttribute("aria-posinset", place + 1);
  const near = isNear(tile.row) ? ", near the threshold" : "";
  const value = tile.row.score === null ? tile.row.error : `score ${short(tile.row.score)}${near}`;
  tile.button.setAttribute("aria-label", `${shortName(tile.row)}, ${verdictText[verdict].replace(/^\W+/, "")}, ${value}`);
}

function setFocused(place) {
  const before = tiles.get(focused);
  if (before) before.button.tabIndex = -1;
  focused = place;
  const tile = tiles.get(place);
  if (tile) tile.button.tabIndex = 0;
}

function goTo(place) {
  if (!state.shown.length) return;
  const target = Math.min(state.shown.length - 1, Math.max(0, place));
  const top = gallery.getBoundingClientRect().top + Math.floor(target / grid.columns) * (grid.height + GAP);
  const head = byId("filters").offsetHeight;
  if (top < head) scrollBy(0, top - head - GAP);
  else if (top + grid.height > innerHeight) scrollBy(0, top + grid.height + GAP - innerHeight);
  setFocused(target);
  showTiles();
  tiles.get(target)?.button.focus({ preventScroll: true });
}

gallery.addEventListener("click", (event) => {
  const button = event.target.closest(".tile");
  if (!button) return;
  setFocused(Number(button.dataset.place));
  openViewer(focused);
});
gallery.addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.floor(innerHeight / (grid.height + GAP))) * grid.columns;
  const step = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid.columns, ArrowDown: grid.columns,
    PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity,
  }[event.key];
  if (step === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  goTo(focused + step);
});
gallery.addEventListener("focusin", (event) => {
  const button = event.target.closest(".tile");
  if (button) setFocused(Number(button.dataset.place));
});
addEventListener("scroll", showTiles, { passive: true });
new ResizeObserver(layOut).observe(gallery.parentElement);

// A new list of images, or new labels for the same ones.
function updateGallery(shown) {
  const same = shown.length === state.shown.length && shown.every((row, place) => row === state.shown[place]);
  if (same) {
    for (const [place, tile] of tiles) label(tile, place);
    return;
  }
  state.shown = shown;
  for (const tile of tiles.values()) tile.holder.remove();
  tiles.clear();
  setFocused(0);
  showTiles();
}
