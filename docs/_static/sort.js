// Tables of numbers are sorted by a click, or Enter, on the title of a column; once more turns the order round.
function value(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/,/g, "").replace("\u2212", "-"));
  return Number.isNaN(number) ? text.toLowerCase() : number;
}

function compare(a, b) {
  if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
  return typeof a === "number" ? -1 : 1;
}

function sortable(table) {
  const head = table.tHead;
  const body = table.tBodies[0];
  if (!head || !body || body.rows.length < 3 || !body.querySelector("td.text-right")) return;
  Array.from(head.rows[0].cells).forEach((title, column) => {
    title.setAttribute("aria-sort", "none");
    title.tabIndex = 0;
    const sort = () => {
      const down = title.getAttribute("aria-sort") === "ascending";
      Array.from(head.rows[0].cells).forEach((other) => other.setAttribute("aria-sort", "none"));
      title.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = Array.from(body.rows).sort((a, b) => compare(value(a, column), value(b, column)));
      body.append(...(down ? rows.reverse() : rows));
    };
    title.addEventListener("click", sort);
    title.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("article table").forEach(sortable));
