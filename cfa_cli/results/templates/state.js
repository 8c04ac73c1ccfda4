// What the page knows, and what the visitor has chosen. All text from the data is set as text, never as markup.
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);

const rows = data.rows.map(([path, name, score, milliseconds, error, url, width, height, defect, regions, misfit, model, near, ignored], index) => ({
  path, name, score, milliseconds, error, url, width, height, defect, regions, misfit, model, near, ignored, index,
  folder: path.includes("/") || path.includes("\\") ? path.replace(/[\\/][^\\/]*$/, "") : "",
}));
const scored = rows.filter((row) => row.score !== null);
const state = { threshold: data.threshold, shown: [] };

const range = (() => {
  const all = [...scored.map((row) => row.score), ...data.holdout, data.threshold];
  let low = Infinity, high = -Infinity;
  for (const value of all) { low = Math.min(low, value); high = Math.max(high, value); }
  const margin = (high - low) * 0.02 || 1;
  return { low: Math.max(0, low - margin), high: high + margin };
})();

const short = (value) => Number(value.toPrecision(4)).toString();
const fraction = (value) => (value - range.low) / (range.high - range.low);
const verdictOf = (row) => (row.score === null ? "error" : row.score > state.threshold ? "anomalous" : "good");
// How sure the threshold is, is known of the model's own alone.
const isNear = (row) => row.near === true && state.threshold === data.threshold;
const verdictText = { anomalous: "▲ anomalous", good: "✓ good", error: "not readable" };
// Only what is unsafe in an address is escaped, part by part, so that a name with # or ? leads to its file.
const fileUrl = (folder, name, suffix) => `${folder}/${name.split("/").map(encodeURIComponent).join("/")}${suffix}`;
const thumbnailUrl = (row) => fileUrl("report", row.name, ".jpg");

function isWrong(row, kind) {
  if (row.defect === null || row.score === null) return false;
  return kind === "missed" ? row.defect && verdictOf(row) === "good" : !row.defect && verdictOf(row) === "anomalous";
}

// On narrow tiles the end of a path tells more than its beginning; so does the part that not all images share.
const common = (() => {
  if (rows.length < 2) return rows.length ? rows[0].path.length - rows[0].path.split(/[\\/]/).pop().length : 0;
  let end = rows[0].folder.length + 1;
  for (const row of rows) while (row.path.slice(0, end) !== rows[0].path.slice(0, end)) end -= 1;
  return Math.max(rows[0].path.lastIndexOf("/", end - 1), rows[0].path.lastIndexOf("\\", end - 1)) + 1;
})();
const shortName = (row) => row.path.slice(common);
const folderName = (folder) => (folder.slice(common) || folder || "(this folder)");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function shape(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}
