// Lanes on one axis of time: rounds, phases, events by subject, and for each node its quality, part, batches or codec.

import { clock, figure, natural, TIME_STEPS, words } from "./format.js";
import { QUALITIES } from "./state.js";
import { colours, fitted, FONT, pointed } from "./theme.js";

const ROW = 17, GAP = 3, AXIS = 22, HEAD = 4, SHARES = 44;
const MOST_LANES = 24, FEW_LANES = 8;

export const CATEGORIES = {
  network: ["network", "network_event", "netsim"],
  nodes: ["node_joined", "node_ready", "node_left", "node_lost", "no_nodes", "membership", "rule", "reassignment",
    "spot_check"],
  alerts: ["alert", "rollback", "update", "work_returned", "step_skipped", "checkpoint_failed", "checkpoint_damaged", "degraded",
    "model_reverted", "update_refused", "node_suspected", "name_contested", "metric_failed"],
  quality: ["quality"],
  selection: ["selection", "gain_measured"],
  quarantine: ["quarantine"],
  "batch size": ["batch_size"],
  pace: ["local_steps", "learning_rate", "optimizer", "deadline", "compression", "connections", "rehearsal"],
  run: ["phase", "policy", "paused", "resumed", "waiting", "round", "round_abandoned", "stopping", "suspended", "completed", "stopped", "recovered"],
};
const CATEGORY_OF = new Map(Object.entries(CATEGORIES).flatMap(([name, kinds]) => kinds.map((kind) => [kind, name])));
const ROUTINE = new Set(["round_started", "round_closed", "shards_dealt"]);
const COLOUR_OF = { alerts: "critical", quarantine: "critical", network: "ghost", nodes: "quarantine" };

export const category = (event) => CATEGORY_OF.get(event.kind) ?? "other";
export const isNews = (event) => !ROUTINE.has(event.kind);

/** Lanes that can be shown, each with what makes its intervals: [from, to, colour, label, text]. */
export const GROUPS = {
  quality: { name: "Link quality", of: qualityLane },
  part: { name: "Selection", of: partLane },
  batch: { name: "Batch sizes", of: batchLane },
  codec: { name: "Codecs", of: codecLane },
};

function qualityLane(history, node) {
  const found = [];
  let quality = "";
  for (const each of history.of(node)) {
    if (each.decided && each.kind === "quality") quality = String(each.figures.quality ?? "");
    const state = each.kind === "node_left" || each.kind === "node_lost" ? "offline" : quality;
    const said = ["quality", "node_left", "node_lost", "node_joined"].includes(each.kind);
    if (said && QUALITIES.includes(state)) found.push([each.t, state, each.text]);
  }
  return runs(found, history.end, (state) => state);
}

function partLane(history, node, rounds) {
  return rounds.filter((round) => round.nodes.has(node) || round.t > (history.seen.get(node) ?? Infinity)).map((round) => {
    const [colour, told] = round.came.has(node) ? ["accent", "contributed"]
      : round.missing.has(node) ? ["poor", "selected, but its update did not come in time"] : ["left-out", "left out"];
    return [round.t - round.seconds, round.t, colour, "", `${node}, round ${round.number}: ${told}`];
  });
}

function batchLane(history, node, rounds) {
  const { least, most } = history.batches;
  const found = rounds.filter((round) => round.nodes.has(node) && round.data.batch_sizes?.[node])
    .map((round) => [round.t - round.seconds, round.data.batch_sizes[node], `batch of ${figure(round.data.batch_sizes[node])}`, round.t]);
  const level = (size) => Math.round((5 * Math.log(Math.max(size / least, 1))) / Math.max(Math.log(most / least), 1e-9)) || 0;
  return runs(found, null, (size) => `b${Math.min(5, Math.max(0, level(size)))}`, figure);
}

function codecLane(history, node, rounds) {
  const name = (round) => `${round.data.codec?.[node] ?? "–"}/${round.data.parameters_codec?.[node] ?? "–"}`;
  const found = rounds.filter((round) => round.nodes.has(node))
    .map((round) => [round.t - round.seconds, name(round), `codecs of update/parameters: ${name(round)}`, round.t]);
  const known = history.codecs;
  return runs(found, null, (codec) => {
    if (!known.has(codec)) known.set(codec, known.size);
    return ["b1", "b3", "fair", "poor", "quarantine", "b5"][known.get(codec) % 6];
  }, (codec) => codec);
}

/** Neighbours of the same state as one interval; without `end`, each lasts until its own. */
function runs(found, end, colour, label = () => "") {
  const merged = [];
  for (const [from, state, text, to] of found) {
    const last = merged.at(-1);
    if (last && last.state === state) last.to = to ?? last.to;
    else {
      if (last && end !== null) last.to = from;
      merged.push({ from, to: to ?? end, state, text });
    }
  }
  return merged.map((each) => [each.from, each.to, colour(each.state), label(each.state), each.text]);
}

/** What lanes need of a history, kept up to date as records come. */
export class Story {
  constructor(history) {
    this.history = history;
    this.reset();
  }

  reset() {
    Object.assign(this, { byNode: new Map(), seen: new Map(), weight: new Map(), codecs: new Map(), counted: 0, version: 0 });
    this.batches = { least: Infinity, most: 1 };
  }

  get end() {
    return this.history.end;
  }

  of(node) {
    return this.byNode.get(node) ?? [];
  }

  /** Take the records of a batch in; they are in the order of time but for a few. */
  add(batch) {
    for (const each of batch) {
      if (each.type === "round") this.#round(each);
      else if (each.subject && each.subject !== "cluster") {
        const list = this.byNode.get(each.subject) ?? [];
        list.push(each);
        if (list.length > 1 && list.at(-2).t > each.t) list.sort((a, b) => a.t - b.t);
        this.byNode.set(each.subject, list);
        if (!this.seen.has(each.subject)) this.seen.set(each.subject, each.t);
        if (isNews(each)) this.weight.set(each.subject, (this.weight.get(each.subject) ?? 0) + 1);
      }
    }
    this.version += 1;
  }

  #round(round) {
    round.nodes = new Set([...round.came, ...round.missing]);
    for (const node of round.nodes) {
      const size = round.data.batch_sizes?.[node];
      if (size > 0) {
        this.batches.least = Math.min(this.batches.least, size);
        this.batches.most = Math.max(this.batches.most, size);
      }
      if (!this.seen.has(node)) this.seen.set(node, round.t - round.seconds);
      if (round.missing.has(node)) this.weight.set(node, (this.weight.get(node) ?? 0) + 1);
    }
  }

  /** The number of nodes to show: fewer of many if several groups of lanes are shown. */
  most(groups) {
    return groups.length > 1 && this.seen.size > MOST_LANES ? FEW_LANES : MOST_LANES;
  }

  /** The nodes to show: all, or those that most happened to. */
  nodes(most) {
    const key = `${this.version} ${most}`;
    if (this.chosenAt === key) return this.chosen;
    this.chosenAt = key;
    const all = [...this.seen.keys()];
    if (all.length > most) {
      all.sort((a, b) => (this.weight.get(b) ?? 0) - (this.weight.get(a) ?? 0) || natural(a, b));
      all.length = most;
    }
    this.chosen = all.sort(natural);
    return this.chosen;
  }
}

export class Lanes {
  constructor(canvas, tooltip, live, on) {
    Object.assign(this, { canvas, tooltip, live, on, marks: [], boxes: [], focus: -1 });
    canvas.addEventListener("pointermove", (event) => this.#hover(event));
    canvas.addEventListener("pointerleave", () => { tooltip.hidden = true; });
    canvas.addEventListener("click", (event) => this.#click(event));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => { this.focus = -1; this.redraw(); });
  }

  /** Draw a story from one time to another; `groups` are names of GROUPS. */
  draw(story, groups, [from, to], marker) {
    this.drawn = [story, groups, [from, to], marker];
    const rounds = story.history.rounds.filter((row) => row.t >= from && row.t - row.seconds <= to && row.nodes);
    const rows = [...this.#common(story, rounds, from, to), ...groups.flatMap((name) => this.#group(story, name, rounds, story.most(groups)))];
    const height = HEAD + rows.reduce((sum, row) => sum + heightOf(row), 0) + AXIS;
    const { context, width } = fitted(this.canvas, height);
    const left = width < 520 ? 74 : 118;
    Object.assign(this, { left, right: width - 8, from, to: Math.max(to, from + 1e-6), marks: [], boxes: [], begin: story.history.begin });
    context.clearRect(0, 0, width, height);
    context.font = `11.5px ${FONT}`;
    context.textBaseline = "middle";
    this.#axis(context, height);
    let y = HEAD;
    for (const row of rows) {
      this.#row(context, row, y);
      y += heightOf(row);
    }
    this.#marker(context, marker, height);
    this.marks.sort((a, b) => a.event.t - b.event.t);
    this.#focused(context);
    this.canvas.setAttribute("aria-label", `Timeline: ${rounds.length} rounds, ${this.marks.length} events and decisions. Arrow keys go from one to the next; Enter says why.`);
  }

  redraw() {
    if (this.drawn) this.draw(...this.drawn);
  }

  #x(t) {
    return this.left + ((t - this.from) / (this.to - this.from)) * (this.right - this.left);
  }

  #common(story, rounds, from, to) {
    const bands = rounds.map((row) => {
      const full = row.reason === "all_contributed" || row.reason === "";
      const told = `round ${row.number}, ${words(row.reason)}: ${row.came.size} of ${row.nodes.size} nodes`;
      return [row.t - row.seconds, row.t, full ? (row.number % 2 ? "band" : "band-2") : "poor", String(row.number), told];
    });
    const phases = story.history.events.filter((each) => each.kind === "phase" && each.decided);
    const phase = runs(phases.map((each) => [each.t, String(each.figures.to ?? ""), each.text]), story.end,
      (name) => (name.includes("warm") || name.includes("init") ? "fair" : "b2"), words);
    const news = new Map(Object.keys(CATEGORIES).map((name) => [name, []]));
    for (const each of story.history.events) {
      if (each.t >= from && each.t <= to && isNews(each)) {
        const name = category(each);
        if (!news.has(name)) news.set(name, []);
        news.get(name).push(each);
      }
    }
    const rows = [{ name: "rounds", bands }, { name: "regime", bands: phase }];
    const shares = story.history.events.filter((each) => each.decided && each.kind === "quality" && each.subject === "cluster");
    if (shares.length) rows.push({ name: "all links", shares, end: story.end });
    for (const [name, events] of news) if (events.length) rows.push({ name, events, colour: COLOUR_OF[name] ?? "accent" });
    return rows;
  }

  #group(story, name, rounds, most) {
    const lanes = story.nodes(most).map((node) => ({ name: node, bands: GROUPS[name].of(story, node, rounds) }));
    const shown = lanes.filter(({ bands }) => bands.length);
    return shown.length ? [{ head: GROUPS[name].name }, ...shown] : [];
  }

  #axis(context, height) {
    const about = Math.max(2, Math.floor((this.right - this.left) / 110));
    context.textAlign = "center";
    for (const t of ticks(this.from - this.begin, this.to - this.begin, about)) {
      const x = this.#x(t + this.begin);
      context.fillStyle = colours.grid;
      context.fillRect(x, HEAD, 1, height - AXIS - HEAD);
      context.fillStyle = colours.soft;
      context.fillText(clock(t), Math.min(x, this.right - 22), height - AXIS / 2);
    }
  }

  #row(context, row, y) {
    if (row.head) {
      context.fillStyle = colours.soft;
      context.textAlign = "left";
      context.font = `600 11.5px ${FONT}`;
      context.fillText(row.head, 0, y + ROW / 2 + 4);
      context.font = `11.5px ${FONT}`;
      return;
    }
    context.fillStyle = colours.ink;
    context.textAlign = "right";
    context.fillText(clipped(context, row.name, this.left - 10), this.left - 8, y + ROW / 2);
    context.save();
    context.beginPath();
    const spare = row.events ? 5 : 0; // a mark at the edge is whole
    context.rect(this.left - spare, y, this.right - this.left + 2 * spare, heightOf(row));
    context.clip();
    if (row.events) this.#events(context, row, y);
    else if (row.shares) this.#shares(context, row, y);
    else for (const band of row.bands) this.#band(context, band, y);
    context.restore();
  }

  #band(context, [from, to, colour, label, text], y) {
    const x = Math.max(this.#x(from), this.left), end = Math.min(this.#x(to), this.right);
    if (end < this.left || x > this.right) return;
    const width = Math.max(end - x - (end - x > 4 ? 1 : 0), 0.6);
    context.fillStyle = colours[colour] ?? colours.unknown;
    context.fillRect(x, y, width, ROW);
    this.boxes.push({ x, y, width, text, from, to });
    if (label && width > 5 * label.length + 6 && width > context.measureText(label).width + 6) {
      context.fillStyle = contrast(colours[colour]);
      context.textAlign = "center";
      context.fillText(label, x + width / 2, y + ROW / 2 + 0.5);
    }
  }

  /** The number of links of each class, which is what is on record of a large cluster. */
  #shares(context, { shares, end }, y) {
    shares.forEach((each, n) => {
      const x = Math.max(this.#x(each.t), this.left), to = this.#x(shares[n + 1]?.t ?? end);
      const counts = QUALITIES.map((name) => [name, Number(each.figures[name]) || 0]);
      const whole = counts.reduce((sum, [, count]) => sum + count, 0) || 1;
      let down = y;
      for (const [name, count] of counts) {
        const tall = (SHARES * count) / whole;
        context.fillStyle = colours[name];
        context.fillRect(x, down, Math.max(to - x + 0.5, 0.6), tall);
        down += tall;
      }
      const text = counts.filter(([, count]) => count).map(([name, count]) => `${count} ${name}`).join(", ");
      this.boxes.push({ x, y, width: to - x, tall: SHARES, text, from: each.t, to: shares[n + 1]?.t ?? end });
    });
  }

  #events(context, row, y) {
    context.fillStyle = colours.line;
    context.fillRect(this.left, y + ROW / 2, this.right - this.left, 1);
    context.fillStyle = colours[row.colour];
    const middle = y + ROW / 2;
    let last = -Infinity;
    context.beginPath();
    for (const event of row.events) {
      const x = this.#x(event.t);
      if (x - last < 2) continue; // a thousand nodes join in the same moment: the list below has them all
      last = x;
      context.moveTo(x, middle - 5.5);
      context.lineTo(x + 4.5, middle);
      context.lineTo(x, middle + 5.5);
      context.lineTo(x - 4.5, middle);
      context.closePath();
      this.marks.push({ x, y: middle, event });
    }
    context.fill();
  }

  #marker(context, marker, height) {
    if (marker === null) return;
    context.fillStyle = colours.ink;
    context.fillRect(this.#x(marker), 0, 1.5, height - AXIS + 4);
  }

  #focused(context) {
    const mark = this.marks[this.focus];
    if (!mark) return;
    context.strokeStyle = colours.ink;
    context.lineWidth = 2;
    context.strokeRect(mark.x - 7, mark.y - 8, 14, 16);
  }

  #nearest(event) {
    const { x, y } = pointed(this.canvas, event);
    let best = null, least = 9;
    for (const mark of this.marks) {
      const away = Math.hypot(mark.x - x, mark.y - y);
      if (away < least) [best, least] = [mark, away];
    }
    const band = this.boxes.find((each) => x >= each.x && x <= each.x + each.width && y >= each.y && y <= each.y + (each.tall ?? ROW));
    const t = this.from + ((x - this.left) / (this.right - this.left)) * (this.to - this.from);
    return { mark: best, band, t, inside: x >= this.left };
  }

  #hover(event) {
    const { mark, band } = this.#nearest(event);
    const text = mark ? `${clock(mark.event.t - this.begin)}: ${mark.event.text}`
      : band ? `${band.text}\n${clock(band.from - this.begin)} to ${clock(band.to - this.begin)}` : "";
    this.canvas.style.cursor = mark ? "pointer" : "crosshair";
    this.tooltip.textContent = text;
    this.tooltip.hidden = !text;
    if (!text) return;
    this.tooltip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - this.tooltip.offsetWidth - 8))}px`;
    this.tooltip.style.top = `${Math.max(8, Math.min(event.clientY + 16, innerHeight - this.tooltip.offsetHeight - 8))}px`;
  }

  #click(event) {
    const { mark, t, inside } = this.#nearest(event);
    if (mark) this.on.why(mark.event);
    else if (inside) this.on.time(t);
  }

  #key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step !== undefined) {
      const at = this.focus < 0 && Number.isFinite(step) ? (step > 0 ? 0 : this.marks.length - 1) : this.focus + step;
      this.focus = Math.min(Math.max(at, 0), this.marks.length - 1);
      const mark = this.marks[this.focus];
      this.live.textContent = mark ? `${clock(mark.event.t - this.begin)}: ${mark.event.text}` : "no events";
      this.redraw();
    } else if (event.key === "Enter" && this.marks[this.focus]) this.on.why(this.marks[this.focus].event);
    else return;
    event.preventDefault();
  }
}

function ticks(low, high, about) {
  const raw = (high - low) / about;
  if (!(raw > 0)) return [];
  const step = TIME_STEPS.find((each) => each >= raw) ?? Math.ceil(raw / 86400) * 86400;
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high + 1e-9; n += 1) found.push(n * step);
  return found;
}

const heightOf = (row) => (row.head ? ROW + 5 : (row.shares ? SHARES : ROW) + GAP);

function clipped(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let kept = text.slice(0, 40);
  while (kept.length > 1 && context.measureText(`${kept}…`).width > width) kept = kept.slice(0, -1);
  return `${kept}…`;
}

const inks = new Map();

/** Black or white, whichever reads better on a colour. */
function contrast(colour) {
  if (!inks.has(colour)) inks.set(colour, inkOn(colour));
  return inks.get(colour);
}

function inkOn(colour) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}
