// Map of nodes and links: the coordinator in the middle, each node as far out as its round trip is long.

import { figure, mbit, milliseconds } from "./format.js";
import { colours, fitted, FONT, pointed, still } from "./theme.js";

const FLIGHT = 900; // ms that the bytes of a round are shown
const LABELLED = 40;
const TURN = Math.PI * (3 - Math.sqrt(5));

export class Map2D {
  constructor(canvas, caption, tooltip, onNode) {
    Object.assign(this, { canvas, caption, tooltip, onNode, places: [], flights: null, chosen: "" });
    this.layer = document.createElement("canvas"); // all that stands still while bytes move
    canvas.addEventListener("pointermove", (event) => this.#hover(event));
    canvas.addEventListener("pointerleave", () => { tooltip.hidden = true; });
    canvas.addEventListener("click", (event) => { const found = this.#nearest(event); if (found) onNode(found.node.id); });
    new ResizeObserver(() => this.#paint()).observe(canvas);
  }

  /** Show the nodes of a state, as `withRow` has them, in order. */
  draw(state, nodes) {
    this.nodes = nodes;
    this.#say(state);
    this.#paint();
  }

  /** Let the bytes of a round fly: down to the nodes, and up again. */
  fly(round) {
    if (still() || document.hidden) return;
    const size = (value) => (value > 0 ? Math.min(4.5, 1.2 + Math.log10(value) / 2.2) : 0);
    const down = round.data.bytes_down ?? {}, up = round.data.bytes_up ?? {};
    const began = performance.now(), first = !this.flights;
    this.flights = { began, sizes: new Map([...Object.keys({ ...down, ...up })].map((id) => [id, [size(down[id]), size(up[id])]])) };
    if (first) requestAnimationFrame(() => this.#frame());
  }

  #frame() {
    if (performance.now() - this.flights.began > 2 * FLIGHT) this.flights = null;
    this.#show();
    if (this.flights) requestAnimationFrame(() => this.#frame());
  }

  #say(state) {
    const counts = new Map();
    for (const node of this.nodes) {
      const name = qualityOf(node);
      counts.set(name, (counts.get(name) ?? 0) + 1);
    }
    const told = [...counts].map(([name, count]) => `${figure(count)} ${name}`).join(", ");
    const text = this.nodes.length ? `${figure(this.nodes.length)} ${this.nodes.length === 1 ? "node" : "nodes"}: ${told}` : "No node has joined yet.";
    this.caption.textContent = text;
    this.canvas.setAttribute("aria-label", `Map of links. ${text}. ${state.running ? `Round ${state.round} is running.` : ""}`);
  }

  #layout(width, height) {
    const known = this.nodes.map((node) => node.rtt).filter((rtt) => rtt > 0);
    const low = Math.log10(Math.max(0.05, Math.min(...known, 1e4))), high = Math.log10(Math.max(...known, 0.1));
    const span = Math.max(high - low, 0.7), reach = Math.min(width, height) / 2 - (this.nodes.length <= LABELLED ? 30 : 12);
    const stretch = Math.min(1.55, Math.max(1, (width - 120) / Math.max(height - 40, 1)));
    const distance = (rtt) => reach * (rtt > 0 ? 0.3 + 0.7 * Math.min(1, Math.max(0, (Math.log10(rtt) - low) / span)) : 0.62);
    this.rings = known.length ? [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000].filter((ms) => Math.log10(ms) >= low - 0.05 && Math.log10(ms) <= high + 0.05)
      .map((ms) => [ms, distance(ms)]).filter((_, n, all) => all.length < 5 || n % 2 === 0) : [];
    const x = width / 2, y = height / 2, turn = this.nodes.length > 60 ? TURN : (2 * Math.PI) / Math.max(this.nodes.length, 1);
    this.stretch = stretch;
    this.places = this.nodes.map((node, n) => {
      const far = distance(node.rtt), angle = n * turn - Math.PI / 2;
      return { node, x: x + stretch * far * Math.cos(angle), y: y + far * Math.sin(angle) };
    });
    return { x, y };
  }

  #paint() {
    if (!this.nodes || !this.canvas.clientWidth) return;
    const { width, height } = fitted(this.canvas), many = this.nodes.length > LABELLED;
    const [wide, tall] = [this.canvas.width, this.canvas.height];
    if (this.layer.width !== wide || this.layer.height !== tall) Object.assign(this.layer, { width: wide, height: tall });
    const context = this.layer.getContext("2d"), scale = wide / width;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const centre = this.centre = this.#layout(width, height);
    this.#links(context, centre, many);
    this.#dots(context, many);
    this.#rings(context, centre);
    context.fillStyle = colours.ink;
    context.beginPath();
    context.arc(centre.x, centre.y, 9, 0, 2 * Math.PI);
    context.fill();
    this.#show();
  }

  #show() {
    const { context, width, height } = fitted(this.canvas);
    context.clearRect(0, 0, width, height);
    context.drawImage(this.layer, 0, 0, width, height);
    if (this.flights) this.#bytes(context, this.centre);
  }

  #rings(context, { x, y }) {
    context.strokeStyle = colours.grid;
    context.fillStyle = colours.soft;
    context.font = `10.5px ${FONT}`;
    context.textAlign = "center";
    context.lineWidth = 1;
    for (const [ms, radius] of this.rings) {
      context.beginPath();
      context.ellipse(x, y, radius * this.stretch, radius, 0, 0, 2 * Math.PI);
      context.stroke();
      const text = `${ms} ms`, at = [x + radius * this.stretch * 0.71, y + radius * 0.71];
      context.strokeStyle = colours.card;
      context.lineWidth = 4;
      context.strokeText(text, ...at);
      context.fillText(text, ...at);
      context.strokeStyle = colours.grid;
      context.lineWidth = 1;
    }
  }

  #links(context, centre, many) {
    // One path for each colour and width: a thousand strokes would take longer than a frame.
    const paths = new Map();
    for (const place of this.places) {
      const { node } = place, colour = colourOf(node);
      const width = node.connected ? widthOf(node.rate) : 0.5;
      const key = `${colour} ${width} ${node.inRound}`;
      if (!paths.has(key)) paths.set(key, { colour, width, inRound: node.inRound, path: new Path2D() });
      const { path } = paths.get(key);
      path.moveTo(centre.x, centre.y);
      path.lineTo(place.x, place.y);
    }
    for (const { colour, width, inRound, path } of paths.values()) {
      context.globalAlpha = (many ? 0.28 : 0.9) * (inRound ? 1 : 0.5);
      if (!many) this.#casing(context, path, width);
      context.strokeStyle = colour;
      context.lineWidth = many ? width / 2 : width;
      context.stroke(path);
    }
    context.globalAlpha = 1;
  }

  /** An edge around a link, without which a light colour cannot be told from the ground. */
  #casing(context, path, width) {
    context.strokeStyle = colours.edge;
    context.lineWidth = width + 1.5;
    context.stroke(path);
  }

  #bytes(context, centre) {
    const since = performance.now() - this.flights.began, isUp = since > FLIGHT, part = (since % FLIGHT) / FLIGHT;
    const at = isUp ? 1 - part : part;
    context.fillStyle = colours.ink;
    context.beginPath();
    for (const place of this.places) {
      const radius = this.flights.sizes.get(place.node.id)?.[isUp ? 1 : 0];
      if (radius) context.rect(centre.x + at * (place.x - centre.x) - radius, centre.y + at * (place.y - centre.y) - radius, 2 * radius, 2 * radius);
    }
    context.fill();
  }

  #dots(context, many) {
    context.font = `11.5px ${FONT}`;
    for (const place of this.places) {
      const { node } = place, radius = many ? (this.nodes.length > 300 ? 2.6 : 4) : 8;
      context.beginPath();
      context.arc(place.x, place.y, radius, 0, 2 * Math.PI);
      context.fillStyle = node.connected ? colourOf(node) : colours.card;
      context.fill();
      const ring = node.standing === "quarantined" ? "quarantine" : node.id === this.chosen ? "ink" : !node.connected ? "offline" : many ? "" : "card";
      if (ring) {
        context.strokeStyle = colours[ring];
        context.lineWidth = ring === "quarantine" || ring === "ink" ? 3 : 1.5;
        context.stroke();
      }
      if (many) continue;
      context.fillStyle = colours.ink;
      context.textAlign = "center";
      context.fillText(node.id.slice(0, 18), place.x, place.y + (place.y < this.centre.y ? -14 : 21));
    }
  }

  #nearest(event) {
    const { x, y } = pointed(this.canvas, event);
    let best = null, least = 14;
    for (const place of this.places) {
      const away = Math.hypot(place.x - x, place.y - y);
      if (away < least) [best, least] = [place, away];
    }
    return best;
  }

  #hover(event) {
    const found = this.#nearest(event);
    this.canvas.style.cursor = found ? "pointer" : "default";
    this.tooltip.hidden = !found;
    if (!found) return;
    const { node } = found;
    this.tooltip.textContent = `${node.id}: ${qualityOf(node)}\nround trip ${milliseconds(node.rtt)}, up ${mbit(node.rate)}\n`
      + `contributed ${figure(node.contributed)} of ${figure(node.selected)}`;
    this.tooltip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - this.tooltip.offsetWidth - 8))}px`;
    this.tooltip.style.top = `${event.clientY + 16}px`;
  }
}

const finite = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);

/** A node with what its row of nodes.json says, where the records say nothing; the class and the state only of now. */
export function withRow(node, row = {}, isNow = true) {
  const down = finite(row.down_mbit) ?? finite(row.down_least_mbit), up = finite(row.up_mbit) ?? finite(row.up_least_mbit);
  return {
    ...node, rtt: node.latency ?? finite(row.rtt_p50_ms), rate: node.upMbit ?? up, downMbit: down, gpu: node.gpu || String(row.gpu ?? ""),
    now: isNow ? String(row.state ?? "") : "", quality: node.quality || (isNow ? String(row.quality ?? "") : ""),
  };
}

export const qualityOf = (node) => (node.connected ? node.quality || "unclassified" : "offline");

function colourOf(node) {
  return colours[node.connected ? node.quality || "unknown" : "offline"] ?? colours.unknown;
}

/** Width of a link, in steps: the logarithm of its rate. */
const widthOf = (rate) => (rate > 0 ? Math.round(2 * Math.min(9, Math.max(1, 1 + 2.4 * Math.log10(1 + rate)))) / 2 : 1);
