// Why: what a change was, for what reason, by which figures, what was expected of it, and what came of it.

import { clock, duration, element, figure, milliseconds, named, percent, size, UNKNOWN, words } from "./format.js";
import { category } from "./lanes.js";
import { metricText } from "./charts.js";
import { qualityOf } from "./map.js";
import { rules } from "./steer.js";

const EXPECTED = /^(planned|expected|predicted|goodput|usual)_|_gain$|^gain|_probability$/;
const AROUND = 5; // rounds before a change, and after it, that are compared
const LATEST = 12;

const median = (values) => {
  const sorted = values.filter((value) => typeof value === "number" && Number.isFinite(value)).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

/**
 * The figures of the rounds before an event and of those after it, up to the next change of the same kind and subject:
 * {before, after, rows: [{name, before, after, show}], until}.
 */
export function outcome(event, history, metric) {
  const { rounds, events } = history;
  const next = events.find((each) => each.t > event.t && each.kind === event.kind && each.subject === event.subject);
  const before = rounds.filter((row) => row.t <= event.t).slice(-AROUND);
  const after = rounds.filter((row) => row.t > event.t && row.t <= (next?.t ?? Infinity)).slice(0, AROUND);
  const node = event.subject && event.subject !== "cluster" ? event.subject : null;
  const of = (list, figures) => median(list.map(figures));
  const measures = [["time of a round", (row) => row.seconds, duration],
    [metric.name, (row) => row.data[metric.name], metricText(metric)], ["loss", (row) => row.data.loss, (value) => figure(value, 4)]];
  if (node) {
    measures.push(["it computed", (row) => row.data.compute_seconds?.[node], duration],
      ["it waited for the network", (row) => row.data.waiting_seconds?.[node], duration],
      ["its batch", (row) => row.data.batch_sizes?.[node], figure], ["its update", (row) => row.data.bytes_up?.[node], size]);
  }
  const rows = measures.map(([name, figures, show]) => ({ name, before: of(before, figures), after: of(after, figures), show }))
    .filter((row, n, all) => (row.before !== null || row.after !== null) && all.findIndex((other) => other.name === row.name) === n);
  if (node) {
    const share = (list) => (list.length ? list.filter((row) => row.came.has(node)).length / list.length : null);
    rows.push({ name: "rounds that it contributed to", before: share(before), after: share(after), show: (value) => percent(value, 0) });
  }
  return { before, after, rows, next };
}

export class Why {
  constructor(panel, history, on) {
    Object.assign(this, { panel, history, on, from: null });
    panel.addEventListener("keydown", (event) => { if (event.key === "Escape") this.close(); });
  }

  close() {
    this.panel.hidden = true;
    this.shown = null;
    this.from?.focus?.();
    this.on.closed();
  }

  /** Explain an event. */
  event(event, metric, origin) {
    const at = clock(event.t - this.history.begin), changed = "from" in event.figures || "to" in event.figures;
    const title = event.decided ? `${sentence(event.kind, "")}${event.subject ? ` of ${event.subject === "cluster" ? "the cluster" : event.subject}` : ""}` : sentence(event.kind, "");
    const { from, to, ...others } = event.figures;
    const entries = Object.entries(others), expected = entries.filter(([name]) => EXPECTED.test(name));
    const measured = entries.filter(([name]) => !EXPECTED.test(name));
    const rest = event.decided ? [] : Object.entries(event.data).filter(([name, value]) => !["seconds", "round", "kind", "text"].includes(name) && typeof value !== "object");
    const result = outcome(event, this.history, metric);
    this.#show(title, origin, [
      element("p", { class: "soft", text: `${at}${event.number > 0 ? `, round ${event.number}` : ""} · ${category(event)}` }),
      changed ? element("p", { class: "change" }, element("span", { text: words(figure(from ?? UNKNOWN)) }), " → ", element("b", { text: words(figure(to ?? UNKNOWN)) })) : null,
      section("Reason", element("p", { text: event.decided ? sentence(event.reason) : event.text })),
      list("Figures", event.decided ? measured : rest), list("What was expected", expected),
      expected.length || !event.decided ? null : section("What was expected", element("p", { class: "soft", text: "No figure on record says so." })),
      this.#came(result),
      element("p", {}, element("button", { type: "button", text: "Show this moment", onclick: () => this.on.time(event.t) })),
    ]);
  }

  /** Show a node as it is in a state, with the latest changes of it. */
  node(node, changes, origin) {
    const facts = [["class", qualityOf(node)], ["standing", node.standing || "regular"], ["card", node.gpu || UNKNOWN],
      ["round trip", milliseconds(node.rtt)], ["lost calls", percent(node.lost)], ["batch", figure(node.batch)],
      ["codecs, up and down", `${node.codec || UNKNOWN}, ${node.parametersCodec || UNKNOWN}`], ["computed in its last round", duration(node.compute)],
      ["waited for the network", duration(node.waiting)], ["contributed", `${figure(node.contributed)} of ${figure(node.selected)} rounds`],
      ["bytes down and up", `${size(node.bytesDown)}, ${size(node.bytesUp)}`]];
    const items = changes.slice(-LATEST).reverse().map((event) => element("li", {}, element("button", {
      type: "button", class: "link", text: `${clock(event.t - this.history.begin)}: ${event.decided ? `${words(event.kind)}: ${words(event.reason)}` : event.text}`,
      onclick: () => this.on.why(event) })));
    this.#show(node.id, origin, [list("Now shown", facts, false), rules(node.id),
      section("Latest changes", items.length ? element("ul", { class: "changes" }, ...items) : element("p", { class: "soft", text: "None so far." }))]);
    this.shown = node.id;
  }

  #came({ before, after, rows, next }) {
    if (!after.length) return section("What came of it", element("p", { class: "soft", text: "No round has closed since." }));
    const cells = rows.map((row) => element("tr", {}, element("th", { scope: "row", text: row.name }),
      element("td", { class: "number", text: row.before === null ? UNKNOWN : row.show(row.before) }),
      element("td", { class: "number", text: row.after === null ? UNKNOWN : row.show(row.after) })));
    const rounds = (list) => `${list.length} ${list.length === 1 ? "round" : "rounds"}`;
    const until = next && after.length < AROUND ? ", until the next such change" : "";
    return section("What came of it", element("table", { class: "came" }, element("thead", {}, element("tr", {}, element("th", { scope: "col", text: "median" }),
      element("th", { scope: "col", class: "number", text: `${rounds(before)} before` }), element("th", { scope: "col", class: "number", text: `${rounds(after)} after` }))),
    element("tbody", {}, ...cells)), element("p", { class: "soft", text: `Other changes may have come between them${until}.` }));
  }

  #show(title, origin, parts) {
    this.from = origin ?? this.from ?? document.activeElement;
    this.shown = null;
    const close = element("button", { type: "button", class: "close", "aria-label": "Close", text: "×", onclick: () => this.close() });
    this.panel.replaceChildren(element("header", {}, element("h2", { text: title, tabindex: "-1" }), close), ...parts.filter(Boolean));
    this.panel.hidden = false;
    this.panel.scrollTop = 0;
    this.panel.querySelector("h2").focus({ preventScroll: true });
    this.on.opened();
  }
}

const sentence = (name, end = ".") => { const text = words(name); return text ? `${text[0].toUpperCase()}${text.slice(1)}${end}` : "Not on record."; };

function section(title, ...children) {
  return element("section", {}, element("h3", { text: title }), ...children);
}

function list(title, entries, format = true) {
  if (!entries.length) return null;
  const items = entries.flatMap(([name, value]) => {
    const [label, text] = format ? named(name, value) : [name, value];
    return [element("dt", { text: label }), element("dd", { text })];
  });
  return section(title, element("dl", { class: "facts" }, ...items));
}
