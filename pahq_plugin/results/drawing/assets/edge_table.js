/* The shown edges as a sortable table: the content of the drawing in words and numbers. */

const ORDER = new Intl.Collator("en", { numeric: true });

class EdgeTable {
  /** `onPoint` gets the label of the edge under the pointer, or null; `onPick` that of a clicked edge. */
  constructor(details, onPoint, onPick) {
    this.details = details;
    this.table = details.querySelector("table");
    this.sorted = { column: "size", descending: true };
    details.addEventListener("toggle", () => this.draw());
    const pointed = ({ target }) => onPoint(target.closest("tr[data-label]")?.dataset.label ?? null);
    this.table.addEventListener("pointerover", pointed);
    this.table.addEventListener("focusin", pointed);
    this.table.addEventListener("pointerleave", () => onPoint(null));
    this.table.addEventListener("focusout", () => onPoint(null));
    this.table.addEventListener("click", ({ target }) => {
      const row = target.closest("tr[data-label]");
      if (row) onPick(row.dataset.label);
    });
  }

  /** Takes `rows` from `listed` and `columns` from `columnsOf`. */
  fill(rows, columns) {
    this.rows = rows;
    this.columns = columns;
    this.draw();
  }

  /** Draws the table only while it is open. */
  draw() {
    if (!this.details.open || !this.rows) return;
    const column = this.columns.find(({ key }) => key === this.sorted.column) ?? this.columns[0];
    const sign = this.sorted.descending ? -1 : 1;
    const rows = [...this.rows].sort((a, b) => sign * inOrder(column.value(a), column.value(b)));
    this.table.replaceChildren(
      element("caption", { class: "visually-hidden" }, "Edges shown"),
      element("thead", {}, element("tr", {}, ...this.columns.map((each) => this.heading(each)))),
      element("tbody", {}, ...rows.map((row) => this.line(row))),
    );
  }

  heading(column) {
    const chosen = column.key === this.sorted.column;
    const arrow = chosen ? (this.sorted.descending ? " ▼" : " ▲") : "";
    const button = element("button", { type: "button" }, column.title,
      element("span", { "aria-hidden": "true" }, arrow));
    button.addEventListener("click", () => {
      this.sorted = { column: column.key, descending: chosen ? !this.sorted.descending : Boolean(column.number) };
      this.draw();
      this.table.querySelector(`th[data-key="${column.key}"] button`).focus();
    });
    const direction = this.sorted.descending ? "descending" : "ascending";
    return element("th", {
      scope: "col", "data-key": column.key, "aria-sort": chosen ? direction : "none",
      class: column.number ? "number" : "",
    }, button);
  }

  line(row) {
    const cells = this.columns.map((column, index) => {
      const text = column.text(row);
      if (index) return element("td", { class: column.number ? "number" : "" }, text);
      const button = element("button", { type: "button", "aria-label": arrowed(row.label) }, text);
      return element("th", { scope: "row" }, button);
    });
    return element("tr", { "data-label": row.label }, ...cells);
  }
}

function inOrder(a, b) {
  return typeof a === "number" ? a - b : ORDER.compare(a, b);
}

/** The edges shown in one or two panels, each once, with its entry of each panel. */
function listed(panels) {
  const rows = new Map();
  panels.forEach((parts, index) => {
    for (const part of parts) {
      if (!rows.has(part.label)) rows.set(part.label, { ...part, panels: [] });
      rows.get(part.label).panels[index] = part;
    }
  });
  return [...rows.values()];
}

/** The columns that have values in these rows. */
function columnsOf(rows, circuits, membership) {
  const column = (key, title, text, value = text, number = false) => ({ key, title, text, value, number });
  const into = (row) => (row.slot ? `${row.destination}.${row.slot}` : row.destination);
  const columns = [column("source", "Source", (row) => row.source), column("destination", "Destination", into)];
  if (rows.some(({ position }) => position !== null)) {
    const place = ({ position }) => (position === null ? "" : String(position));
    columns.push(column("position", "Position", place, ({ position }) => position ?? -1, true));
  }
  if (circuits.length === 1) {
    const { measure } = circuits[0].data;
    columns.push(column("size", titled(measure), (row) => digits(row.effect), (row) => Math.abs(row.effect), true));
    if (measure !== "score") columns.push(column("decided", "Decided on", (row) => (row.exact ? "FP32" : "screened")));
    return columns;
  }
  const words = { both: "A and B", "only-a": "only A", "only-b": "only B" };
  columns.push(column("in", "In", (row) => words[membership(row.label)]));
  circuits.forEach(({ data }, index) => {
    const title = `${titled(data.measure)} in ${"AB"[index]}`;
    const text = (row) => (row.panels[index] ? digits(row.panels[index].effect) : "");
    const value = (row) => (row.panels[index] ? Math.abs(row.panels[index].effect) : -1);
    columns.push(column(index ? "size-b" : "size", title, text, value, true));
  });
  return columns;
}

function titled(word) {
  return word[0].toUpperCase() + word.slice(1);
}
