// Headings of sortable tables become buttons. Without this the table is as it was written: the worst first.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, index) => {
    const cell = row.cells[index], text = cell.dataset.value ?? cell.textContent;
    return text.trim() === "" ? null : Number.isNaN(Number(text)) ? text : Number(text);
  };
  const order = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null); // what is empty stays last
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  };
  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending", sign = down ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [value(row, index), row]);
      rows.sort(([a], [b]) => (a === null || b === null ? order(a, b) : sign * order(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
