"use strict";
// A click on a heading sorts its table by that column: numbers first the highest, then text; a second click turns it.
for (const table of document.querySelectorAll("table")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.firstElementChild.addEventListener("click", () => {
      const body = table.tBodies[0];
      const text = row => row.cells[column].textContent;
      const rows = [...body.rows];
      const numeric = rows.some(row => Number.isFinite(parseFloat(text(row)))) && column > 0;
      const before = heading.getAttribute("aria-sort");
      const descending = before ? before === "ascending" : numeric;
      const value = row => { const number = parseFloat(text(row)); return Number.isFinite(number) ? number : -Infinity; };
      rows.sort((a, b) => numeric ? value(a) - value(b) : text(a).localeCompare(text(b)));
      if (descending) rows.reverse();
      body.append(...rows);
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    });
  });
}
