"use strict";
// The page is complete without this: it adds tooltips, the crosshair, filters and sorting.

const tooltip = document.getElementById("tooltip");

function showTooltip(text, x, y) {
  tooltip.textContent = text;
  tooltip.hidden = false;
  const left = Math.min(x + 14, innerWidth - tooltip.offsetWidth - 8);
  const below = y + 18 + tooltip.offsetHeight < innerHeight;
  tooltip.style.setProperty("left", `${Math.max(8, left)}px`);
  tooltip.style.setProperty("top", `${below ? y + 18 : y - tooltip.offsetHeight - 10}px`);
}

document.addEventListener("pointermove", (event) => {
  const target = event.target.closest?.("[data-tooltip]");
  if (target) showTooltip(target.dataset.tooltip, event.clientX, event.clientY);
  else tooltip.hidden = true;
});
document.addEventListener("pointerleave", () => { tooltip.hidden = true; });
document.addEventListener("scroll", () => { tooltip.hidden = true; }, { passive: true });

// ---------------------------------------------------------------- one crosshair through all charts of time

const charts = [...document.querySelectorAll("svg[data-t1]")].map((svg) => {
  const cross = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cross.setAttribute("class", "cross");
  cross.setAttribute("y1", "0");
  cross.setAttribute("y2", String(svg.viewBox.baseVal.height - 26));
  cross.setAttribute("visibility", "hidden");
  svg.append(cross);
  const [t0, t1, x0, x1] = ["t0", "t1", "x0", "x1"].map((name) => Number(svg.dataset[name]));
  return { svg, cross, t0, t1, x0, x1 };
});

function crossAt(seconds) {
  for (const { cross, t0, t1, x0, x1 } of charts) {
    const inside = seconds !== null && seconds >= t0 && seconds <= t1;
    cross.setAttribute("visibility", inside ? "visible" : "hidden");
    if (!inside) continue;
    const x = String(x0 + ((seconds - t0) / (t1 - t0)) * (x1 - x0));
    cross.setAttribute("x1", x);
    cross.setAttribute("x2", x);
  }
}

for (const { svg, t0, t1, x0, x1 } of charts) {
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    crossAt(x < x0 ? null : t0 + ((x - x0) / (x1 - x0)) * (t1 - t0));
  });
  svg.addEventListener("pointerleave", () => crossAt(null));
}

// ---------------------------------------------------------------- the table of decisions and events

const filters = document.getElementById("filters");
if (filters) {
  const rows = [...document.querySelectorAll("#events tbody tr")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const boxes = [...filters.querySelectorAll("input[type=checkbox]")];
  const search = document.getElementById("search");
  const subject = document.getElementById("subject");
  const shown = document.getElementById("shown");

  const apply = () => {
    const kinds = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, number) => {
      const keep = kinds.has(row.dataset.kind) && (!subject.value || row.dataset.subject === subject.value)
        && words.every((word) => texts[number].includes(word));
      row.hidden = !keep;
      count += keep;
    });
    shown.textContent = count === rows.length ? `${count} shown` : `${count} of ${rows.length} shown`;
  };
  const check = (value) => { boxes.forEach((box) => { box.checked = value; }); apply(); };

  filters.addEventListener("input", apply);
  filters.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("all").addEventListener("click", () => check(true));
  document.getElementById("none").addEventListener("click", () => check(false));
  document.getElementById("events").addEventListener("pointerover", (event) => {
    const row = event.target.closest("tr[data-at]");
    crossAt(row ? Number(row.dataset.at) : null);
  });
  // A mark leads to its row even where a filter hides it.
  addEventListener("hashchange", () => {
    const row = document.querySelector(":target");
    if (row?.hidden) {
      search.value = subject.value = "";
      check(true);
      row.scrollIntoView();
    }
  });
  apply();
}

// ---------------------------------------------------------------- sortable tables

for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "descending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
      const body = table.tBodies[0];
      const text = (row) => row.cells[column]?.textContent ?? "";
      const number = (row) => Number(row.cells[column]?.dataset.value ?? NaN);
      const compare = (a, b) => number(a) - number(b) || text(a).localeCompare(text(b), "en", { numeric: true });
      const order = (a, b) => compare(a, b) * (down ? 1 : -1);
      body.append(...[...body.rows].sort(order));
    });
  });
}
