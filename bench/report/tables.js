"use strict";
// Sorting and filtering of tables, and the choice between light and dark. Without scripts the tables are plain ones.

/** The number that a cell begins with, past arrows and spaces; null for text. */
function numberOf(text) {
  const plain = text.replace(/[,\u00d7]/g, "").replace(/^[^\w.+-]+/, "");
  if (plain.startsWith("inf")) return Infinity;
  const value = parseFloat(plain);
  return Number.isNaN(value) ? null : value;
}

const collator = new Intl.Collator("en", { numeric: true });

function sortTable(table, column, direction) {
  const head = table.tHead.rows[0].cells[column];
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const body = table.tBodies[0];
  const numeric = head.classList.contains("n");
  const key = text => (numeric ? numberOf(text) : text || null);
  const keyed = [...body.rows].map(row => [key((row.cells[column]?.textContent ?? "").trim()), row]);
  const compare = numeric ? (a, b) => (a === b ? 0 : a < b ? -1 : 1) : collator.compare;
  // Cells without a value stay at the end, whichever way the others go.
  keyed.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : direction * compare(a, b)));
  body.append(...keyed.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      sortTable(table, column, head.getAttribute("aria-sort") === "ascending" ? -1 : 1);
    });
  });
}

for (const form of document.querySelectorAll("form[data-filters]")) {
  const rows = [...document.getElementById(form.dataset.filters).tBodies[0].rows];
  const texts = [];
  const apply = () => {
    const words = form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const choices = [...form.querySelectorAll("select")].filter(s => s.value !== "").map(s => [s.dataset.column, s.value]);
    let shown = 0;
    rows.forEach((row, i) => {
      if (words.length) texts[i] ??= [...row.cells].map(cell => cell.textContent).join(" ").toLowerCase();
      const keep = choices.every(([column, value]) => row.cells[column].textContent === value)
        && words.every(word => texts[i].includes(word));
      row.hidden = !keep;
      shown += keep;
    });
    form.querySelector("output").textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", event => event.preventDefault());
  apply();
}

for (const button of document.querySelectorAll("button.theme")) {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light colours" : "Dark colours"; };
  button.hidden = false;
  label();
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
}
