// Charts of the rounds over time, drawn by uPlot; one cursor runs through all of them.

import { clock, duration, element, figure, percent, size, TIME_STEPS } from "./format.js";
import { colours, FONT, unit } from "./theme.js";

const MOST_POINTS = 4000; // more than the pixels of a wide screen

const KINDS = [
  { key: "metric", title: "Metric", lines: [(row, of) => row.data[of.metric.name]] },
  { key: "loss", title: "Loss", lines: [(row) => row.data.loss ?? row.data.train_loss], show: (v) => figure(v, 4) },
  { key: "time", title: "Time of a round", lines: [(row) => row.seconds], show: duration },
  { key: "bytes", title: "Bytes of a round, down and up", show: size, lines: [(row) => row.down, (row) => row.up], names: ["down", "up"] },
];

export class Charts {
  constructor(parent, onTime) {
    this.onTime = onTime;
    this.marker = null;
    this.ghosts = []; // other courses: {name, colour, rounds, begin}; without a begin, on the clock of this run
    this.charts = KINDS.map((kind) => {
      const caption = element("p", { class: "soft" });
      const title = element("h3", { text: kind.title });
      const box = element("div", { class: "plot", role: "img" });
      parent.append(element("figure", {}, element("figcaption", {}, title, caption), box));
      return { kind, title, caption, box, plot: null, rows: [] };
    });
    this.unit = unit();
    new ResizeObserver(() => {
      if (this.unit !== unit()) {
        this.unit = unit();
        this.recolour();
      }
      for (const { plot, box } of this.charts) plot?.setSize(sizeOf(box));
    }).observe(parent);
  }

  /** Draw rounds from a time on; `about` has the metric and the origin of time. */
  update(rounds, about, [from, to]) {
    for (const chart of this.charts) {
      const { kind } = chart;
      const show = kind.show ?? metricText(about.metric);
      if (kind.key === "metric") chart.title.textContent = title(about.metric.name);
      chart.box.closest("figure").hidden = kind.key === "metric" && about.metric.name === "loss";
      const rows = thinned(rounds.filter((row) => row.t >= from && row.t <= to));
      const courses = [{ rounds: rows }, ...this.ghosts.map((ghost) => ({ ...ghost, rounds: thinned(ghost.rounds) }))];
      const data = joined(courses, kind.lines.map((line) => (row) => finite(line(row, about))), about.begin);
      this.#draw(chart, data, show, [from - about.begin, to - about.begin]);
      this.#caption(chart, data, show);
    }
  }

  recolour() {
    for (const chart of this.charts) {
      chart.plot?.destroy();
      chart.plot = null;
    }
  }

  #draw(chart, data, show, [from, to]) {
    const { box, kind } = chart;
    const key = this.ghosts.map(({ name }) => name).join();
    if (chart.plot === null || chart.key !== key) {
      chart.plot?.destroy();
      chart.key = key;
      chart.plot = new uPlot(this.#options(kind, show, data.length - 1, box), data, box);
      box.querySelector(".u-legend")?.setAttribute("aria-label", `Lines: ${chart.title.textContent}`);
      chart.plot.setSize(sizeOf(box)); // with room for the legend, which is there now
    } else chart.plot.setData(data, false);
    chart.plot.batch(() => {
      chart.plot.setScale("x", { min: from, max: Math.max(to, from + 1e-3) });
    });
  }

  #options(kind, show, lines, box) {
    const stroke = [colours.accent, colours.quarantine];
    const series = Array.from({ length: lines }, (_, n) => {
      const ghost = this.ghosts[n - kind.lines.length], line = ghost ? 0 : n; // of another course, one line
      const names = [ghost?.name, kind.names?.[line]].filter(Boolean);
      return {
        label: names.join(", ") || "this run", stroke: ghost ? colours[ghost.colour] : stroke[line], width: ghost ? 1.5 : 2,
        dash: ghost ? [6, 5] : undefined, spanGaps: true, points: { show: false }, value: (_u, v) => (v === null ? "–" : show(v)),
      };
    });
    const axis = { stroke: colours.soft, font: `${11 * unit()}px ${FONT}`, grid: { stroke: colours.grid, width: 1 }, ticks: { show: false } };
    return {
      ...sizeOf(box), padding: [8, 10, 0, 0], legend: { show: lines > 1, live: false }, cursor: {
        sync: { key: "time" }, points: { size: 7 }, drag: { x: false, y: false },
        bind: { click: (u) => (event) => { this.onTime(u.posToVal(u.cursor.left, "x")); return event; } },
      },
      scales: { x: { time: false } }, series: [{ value: (_u, v) => clock(v ?? 0) }, ...series],
      axes: [
        { ...axis, size: 24 * unit(), values: (_u, ticks) => ticks.map(clock), space: 70 * unit(), incrs: TIME_STEPS },
        { ...axis, size: 58 * unit(), values: (_u, ticks) => ticks.map(show), space: 34 * unit() },
      ],
      hooks: { draw: [(u) => this.#drawMarker(u)], setCursor: [(u) => tell(u, box, show)] },
    };
  }

  #drawMarker(u) {
    if (this.marker === null) return;
    const x = u.valToPos(this.marker, "x", true), { left, top, width, height } = u.bbox;
    if (x < left || x > left + width) return;
    u.ctx.save();
    u.ctx.strokeStyle = colours.ink;
    u.ctx.lineWidth = devicePixelRatio;
    u.ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
    u.ctx.beginPath();
    u.ctx.moveTo(x, top);
    u.ctx.lineTo(x, top + height);
    u.ctx.stroke();
    u.ctx.restore();
  }

  #caption(chart, data, show) {
    const known = data[1].filter((value) => value !== null);
    const text = known.length ? `${show(known[0])} → ${show(known.at(-1))}` : "not measured yet";
    chart.caption.textContent = text;
    chart.box.setAttribute("aria-label", `${chart.title.textContent} over time: ${text}`);
  }
}

/** Size of a plot in its box, above the legend of several lines. */
function sizeOf(box) {
  const legend = box.querySelector(".u-legend")?.offsetHeight ?? 0;
  return { width: Math.max(120, box.clientWidth), height: Math.max(90, box.clientHeight - legend) };
}

function tell(u, box, show) {
  const at = u.cursor.idx;
  if (at === null || at === undefined) box.removeAttribute("title");
  else box.title = `${clock(u.data[0][at])}: ${u.data.slice(1).map((line) => (line[at] === null ? "–" : show(line[at]))).join(", ")}`;
}

const finite = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
const title = (name) => name.charAt(0).toUpperCase() + name.slice(1);

export function metricText(metric) {
  return metric.format === "percent" ? (value) => percent(value) : (value) => figure(value, 4);
}

/** At most so many rows, evenly; the last stays. */
function thinned(rows) {
  const step = Math.ceil(rows.length / MOST_POINTS);
  return step <= 1 ? rows : rows.filter((_, n) => n % step === 0 || n === rows.length - 1);
}

/** The rows of several courses on one axis of seconds since the first round. */
function joined(courses, lines, begin) {
  const tables = courses.map(({ rounds, begin: own }, n) => [rounds.map((row) => row.t - (own ?? begin)),
    ...(n ? lines.slice(0, 1) : lines).map((line) => rounds.map(line))]);
  if (tables.length === 1) return tables[0];
  const [xs, ...ys] = uPlot.join(tables);
  return [xs, ...ys.map((line) => line.map((value) => value ?? null))];
}
