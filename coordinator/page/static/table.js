// A table of any length: only the rows in sight are in the document. Columns sort by buttons.

import { element, natural } from "./format.js";
import { unit } from "./theme.js";

const ROW = 33; // pixels, times the unit; the style sheet has it too
const SPARE = 6;

export class Table {
  /**
   * `columns`: {key, name, width, number, of(row), show(value), colour(row)}; 
   * `onRow(row)` makes the first cell a button.
   */
  constructor(parent, { label, columns, sort, onRow, empty = "Nothing yet." }) {
    Object.assign(this, { columns, sort, onRow, given: [], rows: [], shown: [] });
    this.heads = columns.map((column) => {
      const button = element("button", { type: "button", text: column.name, onclick: () => this.#sortBy(column) });
      return element("th", { scope: "col", class: column.number ? "number" : null }, button);
    });
    this.top = element("tr", { class: "space", "aria-hidden": "true" }, element("td", { colspan: columns.length }));
    this.bottom = this.top.cloneNode(true);
    this.body = element("tbody", {}, this.top, this.bottom);
    const cols = columns.map((column) => { const col = element("col"); col.style.width = `${(column.width ?? 90) / 16}rem`; return col; });
    this.table = element("table", { "aria-label": label }, element("colgroup", {}, ...cols),
      element("thead", {}, element("tr", {}, ...this.heads)), this.body);
    this.table.style.minWidth = `${columns.reduce((sum, column) => sum + (column.width ?? 90), 0) / 16}rem`;
    this.none = element("p", { class: "soft none", text: empty });
    this.box = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, this.table, this.none);
    this.box.addEventListener("scroll", () => this.#paint(), { passive: true });
    new ResizeObserver(() => this.#paint()).observe(this.box);
    parent.append(this.box);
    this.#mark();
  }

  /** Show rows; those that are alike in the sorted column keep their order. */
  update(rows) {
    this.given = rows;
    this.rows = this.sort ? this.#sorted(rows) : rows;
    this.table.setAttribute("aria-rowcount", rows.length + 1);
    this.none.hidden = rows.length > 0;
    this.table.hidden = rows.length === 0;
    this.#paint();
  }

  #sortBy(column) {
    const before = this.sort;
    this.sort = { key: column.key, down: before?.key === column.key ? !before.down : Boolean(column.number) };
    this.#mark();
    this.update(this.given);
  }

  #mark() {
    this.columns.forEach((column, n) => {
      const sorted = this.sort?.key === column.key ? (this.sort.down ? "descending" : "ascending") : "none";
      this.heads[n].setAttribute("aria-sort", sorted);
    });
  }

  #sorted(rows) {
    const { key, down } = this.sort;
    if (key === this.given.sortedBy && !down) return rows;
    const { of } = this.columns.find((column) => column.key === key);
    const sign = down ? -1 : 1;
    return rows.map((row) => [of(row), row]).sort(([a], [b]) => {
      if (a === null || a === "" || b === null || b === "") return (a === null || a === "") - (b === null || b === "");
      const order = typeof a === "number" && typeof b === "number" ? a - b : natural(a, b);
      return sign * order;
    }).map(([, row]) => row);
  }

  #paint() {
    const tall = this.box.clientHeight;
    if (!tall) return;
    const high = ROW * unit(), first = Math.max(0, Math.floor(this.box.scrollTop / high) - SPARE);
    const count = Math.min(this.rows.length - first, Math.ceil(tall / high) + 2 * SPARE);
    this.top.firstChild.style.height = `${first * high}px`;
    this.bottom.firstChild.style.height = `${Math.max(0, this.rows.length - first - count) * high}px`;
    while (this.shown.length < count) this.#addRow();
    this.shown.forEach(({ line, cells, button }, n) => {
      const row = n < count ? this.rows[first + n] : null;
      line.hidden = row === null;
      if (!row) return;
      line.setAttribute("aria-rowindex", first + n + 2);
      this.columns.forEach((column, at) => {
        const text = column.show ? column.show(column.of(row), row) : column.of(row) ?? "–";
        const target = at === 0 && button ? button : cells[at];
        if (target.textContent !== String(text)) target.textContent = text;
        if (column.mark) cells[at].className = `mark ${column.mark(row)}${column.number ? " number" : ""}`;
        if (column.wide && cells[at].title !== String(text)) cells[at].title = text;
      });
      if (button) button.onclick = () => this.onRow(row, button);
    });
  }

  #addRow() {
    const cells = this.columns.map((column, n) => element(n ? "td" : "th", { scope: n ? null : "row", class: column.number ? "number" : null }));
    const button = this.onRow ? element("button", { type: "button", class: "link" }) : null;
    if (button) cells[0].append(button);
    const line = element("tr", {}, ...cells);
    this.bottom.before(line);
    this.shown.push({ line, cells, button });
  }
}
