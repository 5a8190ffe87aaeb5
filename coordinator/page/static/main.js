// The page: takes the records in, and shows the state at the chosen time; the latest, unless somebody looks back.

import { Charts, metricText } from "./charts.js";
import { clock, duration, element, figure, mbit, milliseconds, natural, percent, size, UNKNOWN, words } from "./format.js";
import { History } from "./history.js";
import { category, CATEGORIES, GROUPS, isNews, Lanes, Story } from "./lanes.js";
import { Map2D, qualityOf, withRow } from "./map.js";
import { QUALITIES, record } from "./state.js";
import { offer, steerable } from "./steer.js";
import { follow, keepToken, takeToken } from "./stream.js";
import { Table } from "./table.js";
import { onTheme } from "./theme.js";
import { WhatIf } from "./whatif.js";
import { Why } from "./why.js";

const LOAD_MS = 1500; // records of a long run are shown in so large steps while they are read
const SLOW_MS = 250; // at least, between two drawings of what takes long: lanes, charts and tables
const MANY = 200; // nodes above which the map is drawn no oftener than the rest
const PLAY_SECONDS = 20; // that the whole run takes when it is played

const at = (id) => document.getElementById(id);
const ACCURACY = { name: "accuracy", format: "percent" };

class Page {
  constructor() {
    this.history = new History();
    this.story = new Story(this.history);
    this.about = {};
    this.summary = {};
    this.rows = new Map(); // of nodes.json, by node
    this.faults = new Set();
    this.unread = {};
    this.waiting = [];
    this.caughtUp = false;
    this.shownAt = null; // null: the latest
    this.playing = null;
    this.slowAt = 0;
    this.connection = ["connecting", ""];
    this.ghosts = []; // other runs that are drawn beside this one
    this.whatIf = new WhatIf(at("what-if"), () => this.draw(true));
    this.charts = new Charts(at("charts"), (t) => this.goTo(t + this.history.begin));
    this.lanes = new Lanes(at("lanes"), at("tooltip"), at("live"), { why: (event) => this.explain(event, at("lanes")), time: (t) => this.goTo(t) });
    this.map = new Map2D(at("map"), at("map-caption"), at("tooltip"), (id) => this.showNode(id, at("map")));
    this.why = new Why(at("why"), this.history, {
      why: (event) => this.explain(event), time: (t) => this.goTo(t), opened: () => document.body.classList.add("explained"),
      closed: () => { document.body.classList.remove("explained"); this.map.chosen = ""; this.draw(); },
    });
    this.#tables();
    this.#controls();
    onTheme(() => { this.charts.recolour(); this.draw(true); });
    new ResizeObserver(() => this.draw(true)).observe(at("lanes").parentElement);
  }

  get metric() {
    const given = this.summary.metric ?? this.about.metric;
    return given && typeof given.name === "string" ? given : ACCURACY;
  }

  // ------------------------------------------------------------ what arrives

  message(kind, data) {
    if (kind === "begin") this.begin(data);
    else if (kind === "about") this.introduce(data);
    else if (kind === "event" || kind === "round") this.take(kind, data);
    else if (kind === "summary") this.summary = this.parsed("summary.json", data) ?? this.summary;
    else if (kind === "nodes") this.takeNodes(this.parsed("nodes.json", data));
    else if (kind === "what_if") this.whatIf.take(this.parsed("what_if.json", data));
    else if (kind === "note") this.faults.add(data);
    else if (kind === "caught_up") this.caughtUp = true;
    this.soon();
  }

  begin(data) {
    Object.assign(this, { history: new History(), rows: new Map(), faults: new Set(), unread: {}, waiting: [], caughtUp: false, summary: {} });
    this.story = new Story(this.history);
    this.why.history = this.history;
    this.whatIf.take(null);
    this.introduce(data);
    this.beganAt = performance.now();
  }

  introduce(data) {
    this.about = this.parsed("about", data) ?? {};
    for (const fault of this.about.faults ?? []) this.faults.add(fault);
    offer(this.about, this.token, () => (this.shownAt === null ? 0 : this.state.round));
    if (this.about.beside && !this.ghosts.length) this.#showBeside();
  }

  /** Draw the rounds of another run beside this one. */
  #showBeside() {
    const other = new History(), name = String(this.about.beside);
    let rows = [];
    follow("beside", this.token, {
      status() {},
      message: (kind, data) => {
        if (kind === "event" || kind === "round") rows.push(...this.made(kind, data));
        else if (kind === "caught_up" || this.ghosts.length) {
          other.add(rows);
          rows = [];
          this.ghosts = [{ name, rounds: other.rounds, begin: other.begin, colour: "ghost" }];
          this.soon();
        }
      },
    });
  }

  parsed(what, text) {
    try {
      return JSON.parse(text);
    } catch {
      this.faults.add(`${what} is not valid JSON and is left out.`);
      return null;
    }
  }

  take(kind, text) {
    const made = this.made(kind, text);
    this.waiting.push(...made);
    if (!made.length) this.unread[kind] = (this.unread[kind] ?? 0) + 1;
  }

  /** The record of a line, or none if it is cut, edited or has no time. */
  made(kind, text) {
    try {
      const made = record(kind, JSON.parse(text));
      return made ? [made] : [];
    } catch {
      return [];
    }
  }

  takeNodes(rows) {
    const list = Array.isArray(rows) ? rows : [];
    this.rows = new Map(list.filter((row) => typeof row?.node_id === "string").map((row) => [row.node_id, row]));
  }

  /** Take in what arrived and draw, at the next frame. */
  soon() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      const loading = !this.caughtUp && performance.now() - this.beganAt < LOAD_MS;
      if (loading) { setTimeout(() => this.soon(), 60); return; }
      if (!this.caughtUp) this.beganAt = performance.now();
      const fresh = this.waiting;
      this.waiting = [];
      if (fresh.length) {
        this.history.add(fresh);
        this.story.add(fresh);
        const round = fresh.findLast((each) => each.type === "round");
        if (round && this.caughtUp && this.shownAt === null && fresh.length < 200) this.map.fly(round);
      }
      this.draw();
    });
  }

  // ------------------------------------------------------------ what is shown

  get state() {
    return this.shownAt === null ? this.history.head : this.history.at(this.shownAt);
  }

  goTo(t) {
    this.shownAt = t === null || t >= this.history.end ? null : Math.max(t, this.history.records[0]?.t ?? 0);
    this.draw(true);
  }

  /** Show what changed: figures at once; what takes long part by part, a frame each, unless it must be `now`. */
  draw(now = false) {
    this.#header(this.state);
    this.#tiles(this.state);
    this.#scrub();
    if (now || this.history.head.nodes.size <= MANY) this.#drawMap();
    if (now) {
      this.parts = null;
      for (const part of this.#slowParts()) part();
    } else if (!this.parts) {
      this.parts = this.#slowParts();
      setTimeout(() => this.#drawParts(), Math.max(0, this.slowAt - performance.now()));
    }
  }

  #drawParts() {
    requestAnimationFrame(() => {
      if (!this.parts) return;
      const began = performance.now();
      const part = this.parts.shift();
      if (this.parts.length) this.#drawParts();
      else this.parts = null;
      part();
      this.slowAt = Math.max(began + SLOW_MS, this.slowAt) + 3 * (performance.now() - began);
    });
  }

  #slowParts() {
    return [() => this.#drawMap(), () => this.#drawCharts(), () => this.#drawLanes(), () => this.#drawTables()];
  }

  #drawMap() {
    if (this.why.shown && this.state.nodes.has(this.why.shown)) this.map.chosen = this.why.shown;
    this.map.draw(this.state, this.#nodes(this.state));
  }

  #drawCharts() {
    this.charts.marker = this.shownAt === null ? null : this.shownAt - this.history.begin;
    this.charts.ghosts = [...this.ghosts, ...this.whatIf.ghosts];
    const [from, to] = this.#span(), isWhole = at("window").value === "0";
    const until = Math.max(to, Math.min(this.whatIf.end, 2 * to - from)); // the run keeps half of the width
    this.charts.update(this.history.rounds, { metric: this.metric, begin: this.history.begin }, [from, isWhole ? until : to]);
  }

  #drawLanes() {
    const chosen = at("group").value, groups = chosen === "all" ? Object.keys(GROUPS) : [chosen], most = this.story.most(groups);
    this.lanes.draw(this.story, groups, this.#span(), this.shownAt);
    const left = this.story.seen.size - most;
    at("lanes-told").textContent = left > 0 ? `The ${most} nodes that most happened to; ${figure(left)} more are in the tables.` : "";
  }

  #drawTables() {
    const rows = this.#nodes(this.state);
    this.nodes.update(rows);
    this.links.update(rows);
    this.#events();
  }

  /** The nodes of a state with what nodes.json says of them, by name. */
  #nodes(state) {
    if (this.names?.length !== state.nodes.size || this.names.some((id) => !state.nodes.has(id))) {
      this.names = [...state.nodes.keys()].sort(natural);
    }
    const isNow = this.shownAt === null;
    const rows = this.names.map((id) => withRow(state.nodes.get(id), this.rows.get(id), isNow));
    rows.sortedBy = "id";
    return rows;
  }

  #span() {
    const { begin, end, records } = this.history, seconds = Number(at("window").value);
    const until = seconds && this.shownAt !== null ? Math.min(end, this.shownAt + seconds / 2) : end;
    const first = Math.max(records[0]?.t ?? 0, begin - 0.05 * (end - begin));
    return [seconds ? Math.max(first, until - seconds) : first, Math.max(until, first + 1e-3)];
  }

  #header(state) {
    const { about, summary } = this, total = count(about.rounds) || count(summary.rounds_planned);
    const ended = state.run === "completed" || state.run === "stopped";
    const lost = this.connection[0] === "lost";
    const shown = this.shownAt !== null || ended || (about.live && !lost) || !this.caughtUp ? state.run : about.live ? "lost" : "unfinished";
    at("name").textContent = about.name ?? "HyperGPU";
    document.title = `${about.name ?? "run"} – HyperGPU`;
    const facts = [summary.scenario ? `simulated: ${summary.scenario}` : "", about.task, state.policy || summary.policy || about.policy];
    at("kicker").textContent = ["HyperGPU", ...facts.filter(Boolean)].join(" · ");
    at("state").hidden = !this.caughtUp;
    at("state").textContent = shown === "lost" ? "no connection" : words(shown);
    at("state").className = `state ${shown}`;
    document.body.classList.toggle("past", this.shownAt !== null);
    at("told").textContent = this.#told(state, ended, lost);
    at("steer").hidden = !steerable(about) || ended;
    at("progress-box").hidden = !this.caughtUp;
    at("progress-text").textContent = `round ${figure(state.round)}${total ? ` of ${figure(total)}` : ""}${state.phase ? ` · ${words(state.phase)}` : ""}`;
    at("progress").hidden = !total;
    at("progress").max = total || Math.max(state.round, 1);
    at("progress").value = Math.min(state.round, total || state.round);
    this.#faults();
  }

  #told(state, ended, lost) {
    if (ended) return words(state.ended);
    if (lost && this.caughtUp) return "No connection to the run: it may have ended. `hypergpu view` shows its directory; this page tries again.";
    if (lost) return `The run cannot be reached: ${this.connection[1]}. This page tries again.`;
    if (!this.caughtUp) return "Reading the records …";
    return state.waiting || "";
  }

  #faults() {
    const files = { event: "events.jsonl", round: "rounds.jsonl" };
    const unread = Object.entries(this.unread).map(([kind, count]) => `Lines of ${files[kind]} that could not be read and are left out: ${count}.`);
    const texts = [...this.faults, ...unread];
    at("notes").hidden = texts.length === 0;
    if (at("notes").childElementCount !== texts.length || at("notes").textContent !== texts.join("")) {
      at("notes").replaceChildren(...texts.map((text) => element("li", { text })));
    }
  }

  #tiles(state) {
    const nodes = [...state.nodes.values()], connected = nodes.filter((node) => node.connected).length;
    const rounds = this.history.rounds, metric = this.metric;
    const last = rounds.findLast((row) => row.t <= state.t && typeof row.data[metric.name] === "number");
    const tiles = {
      ...(metric.name === "loss" ? {} : { [metric.name]: last ? metricText(metric)(last.data[metric.name]) : UNKNOWN }),
      loss: state.loss === null ? UNKNOWN : figure(state.loss, 4), time: clock(Math.max(0, state.t - this.history.begin)),
      "last round": duration(state.roundSeconds), nodes: connected < nodes.length ? `${figure(connected)} of ${figure(nodes.length)}` : figure(connected),
      computing: percent(state.utilisation, 0), down: size(state.down), up: size(state.up), "local steps": figure(state.steps),
      "learning rate": figure(state.rate, 3),
    };
    const list = at("tiles");
    if (list.childElementCount !== Object.keys(tiles).length) {
      list.replaceChildren(...Object.keys(tiles).map(() => element("div", {}, element("dt"), element("dd"))));
    }
    Object.entries(tiles).forEach(([name, text], n) => {
      const [dt, dd] = list.children[n].children;
      if (dt.textContent !== name) dt.textContent = name;
      if (dd.textContent !== text) dd.textContent = text;
    });
  }

  #scrub() {
    const { begin, end, records } = this.history, first = records[0]?.t ?? 0, slider = at("time");
    const shown = this.shownAt ?? end;
    slider.min = first;
    slider.max = Math.max(end, first + 1e-3);
    if (document.activeElement !== slider || this.shownAt === null || this.playing) slider.value = shown;
    const text = clock(shown - begin);
    at("at").textContent = text;
    slider.setAttribute("aria-valuetext", `${text}${this.shownAt === null ? ", the latest" : ""}, round ${this.state.round}`);
    at("follow").setAttribute("aria-pressed", String(this.shownAt === null));
  }

  #events() {
    const kind = at("kind").value, word = at("search").value.trim().toLowerCase();
    const until = this.shownAt ?? Infinity, key = [kind, word, until, this.story.version, this.history.events.length].join("|");
    if (key === this.eventsKey) return;
    this.eventsKey = key;
    const found = this.history.events.filter((event) => isNews(event) && event.t <= until && (!kind || category(event) === kind)
      && (!word || `${event.kind} ${event.text}`.toLowerCase().includes(word)));
    this.events.update(found.reverse());
  }

  // ------------------------------------------------------------ why

  explain(event, origin) {
    this.why.event(event, this.metric, origin);
  }

  showNode(id, origin) {
    const node = this.state.nodes.get(id);
    if (!node) return;
    const until = this.shownAt ?? Infinity;
    this.why.node(withRow(node, this.rows.get(id), this.shownAt === null), this.story.of(id).filter((event) => event.t <= until && isNews(event)), origin);
    this.map.chosen = id;
    this.draw();
  }

  // ------------------------------------------------------------ tables and controls

  #tables() {
    const nameColumn = { key: "id", name: "node", width: 150, of: (node) => node.id };
    const onRow = (node, button) => this.showNode(node.id, button);
    this.nodes = new Table(at("nodes"), { label: "Nodes", sort: { key: "id", down: false }, onRow, empty: "No node has joined yet.", columns: [
      nameColumn, { key: "state", name: "state", width: 110, of: (node) => this.#stateOf(node) },
      { key: "gpu", name: "card", width: 110, of: (node) => node.gpu },
      { key: "batch", name: "batch", number: true, of: (node) => node.batch, show: figure },
      { key: "compute", name: "computes", number: true, width: 100, of: (node) => node.compute, show: duration },
      { key: "waiting", name: "waits", number: true, of: (node) => node.waiting, show: duration },
      { key: "contributed", name: "contributed", number: true, width: 110, of: (node) => node.contributed, show: figure },
      { key: "selected", name: "selected", number: true, of: (node) => node.selected, show: figure },
      { key: "last", name: "last round", number: true, width: 100, of: (node) => node.lastRound || null, show: figure },
      { key: "standing", name: "standing", width: 110, of: (node) => node.standing || "regular", show: words },
      { key: "rule", name: "rule", width: 90, of: (node) => node.rule || "automatic", show: words },
    ] });
    this.links = new Table(at("links"), { label: "Links", sort: { key: "id", down: false }, onRow, empty: "No node has joined yet.", columns: [
      nameColumn, { key: "class", name: "class", width: 125, of: (node) => rank(node), show: (_, node) => qualityOf(node), mark: qualityOf },
      { key: "score", name: "score", number: true, width: 80, of: (node) => node.score, show: (value) => figure(value, 3) },
      { key: "rtt", name: "round trip", number: true, width: 105, of: (node) => node.rtt, show: milliseconds },
      { key: "lost", name: "lost calls", number: true, width: 95, of: (node) => node.lost, show: (value) => percent(value) },
      { key: "upRate", name: "rate up", number: true, width: 115, of: (node) => node.rate, show: mbit },
      { key: "downRate", name: "rate down", number: true, width: 115, of: (node) => node.downMbit, show: mbit },
      { key: "up", name: "bytes up", number: true, width: 95, of: (node) => node.bytesUp, show: size },
      { key: "down", name: "bytes down", number: true, width: 105, of: (node) => node.bytesDown, show: size },
      { key: "codec", name: "codec up", width: 95, of: (node) => node.codec || null },
      { key: "codecDown", name: "codec down", width: 105, of: (node) => node.parametersCodec || null },
    ] });
    this.events = new Table(at("events"), { label: "Changes", onRow: (event, button) => this.explain(event, button), columns: [
      { key: "kind", name: "change", width: 140, of: (event) => event.kind, show: words },
      { key: "t", name: "time", number: true, width: 95, of: (event) => event.t, show: (t) => clock(t - this.history.begin) },
      { key: "round", name: "round", number: true, width: 70, of: (event) => event.number, show: figure },
      { key: "subject", name: "about", width: 120, of: (event) => event.subject || null },
      { key: "why", name: "why", width: 520, wide: true, of: (event) => (event.decided ? words(event.text.slice(event.text.indexOf(":") + 2)) : event.text) },
    ] });
  }

  #stateOf(node) {
    if (node.done) return "done";
    if (!node.connected) return node.gone.includes("lost") ? "lost" : node.gone ? "left" : "gone";
    if (node.now) return node.now;
    return node.inRound ? "in the round" : node.ready ? "ready" : "preparing";
  }

  #controls() {
    at("group").append(...[["all", "all"], ...Object.entries(GROUPS).map(([key, { name }]) => [key, name])].map(([value, text]) => element("option", { value, text })));
    at("kind").append(...["", ...Object.keys(CATEGORIES), "other"].map((value) => element("option", { value, text: value || "all" })));
    at("legend").append(...[...QUALITIES, "unclassified"].map((name) => element("li", { class: name }, element("span", { class: "swatch" }), name)));
    for (const id of ["group", "window", "kind", "search"]) at(id).addEventListener("input", () => this.draw(true));
    at("time").addEventListener("input", () => { this.stop(); this.goTo(Number(at("time").value)); });
    at("follow").addEventListener("click", () => { this.stop(); this.goTo(null); });
    at("play").addEventListener("click", () => (this.playing ? this.stop() : this.play()));
  }

  play() {
    const first = this.history.records[0]?.t ?? 0, { end } = this.history;
    const from = this.shownAt ?? first, speed = (end - first) / PLAY_SECONDS, began = performance.now();
    let passed = this.history.rounds.findIndex((row) => row.t > from);
    at("play").textContent = "❚❚";
    at("play").setAttribute("aria-label", "Pause");
    const step = () => {
      const t = from + (speed * (performance.now() - began)) / 1000;
      if (t >= end) { this.stop(); this.goTo(null); return; }
      this.shownAt = t;
      const round = this.history.rounds[passed];
      if (round && round.t <= t) {
        if (!this.map.flights) this.map.fly(round);
        while (this.history.rounds[passed]?.t <= t) passed += 1;
      }
      this.draw();
      this.playing = requestAnimationFrame(step);
    };
    this.playing = requestAnimationFrame(step);
  }

  stop() {
    if (!this.playing) return;
    cancelAnimationFrame(this.playing);
    this.playing = null;
    at("play").textContent = "▶";
    at("play").setAttribute("aria-label", "Play");
  }
}

const count = (value) => (Number.isFinite(value) && value > 0 ? value : 0);
const rank = (node) => { const n = QUALITIES.indexOf(qualityOf(node)); return n < 0 ? QUALITIES.length : n; };

const page = new Page();
globalThis.hypergpu = page; // for tests, and for the console

function connect(token) {
  at("ask").hidden = true;
  page.token = token;
  follow("events", token, {
    message: (kind, data) => page.message(kind, data),
    status(state, text) {
      page.connection = [state, text];
      if (state === "refused") ask(text);
      else page.draw();
    },
  });
}

function ask(why) {
  at("ask").hidden = false;
  at("ask-why").textContent = `${why}. A viewer's or an operator's token shows the run.`;
  at("name").textContent = "HyperGPU";
  at("told").textContent = "";
  at("token").focus();
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(at("token").value.trim());
  connect(at("token").value.trim());
});
connect(takeToken());
