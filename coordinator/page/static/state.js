// The state of a run at a time: a reduction over its records, the same for a live run and for a time in the past.
// `apply` replaces the object of a node that changes and never changes one, so that a copy of the state is cheap.

export const QUALITIES = ["excellent", "good", "fair", "poor", "critical", "offline"];

export function initial() {
  return {
    t: 0, round: 0, running: false, run: "waiting", ended: "", waiting: "", phase: "", policy: "", metric: null, loss: null,
    roundSeconds: null, steps: null, rate: null, optimizer: "", utilisation: null, down: 0, up: 0, classes: null,
    nodes: new Map(),
  };
}

export function copy(state) {
  return { ...state, nodes: new Map(state.nodes) };
}

const NEW_NODE = {
  id: "", connected: false, ready: false, gone: "", gpu: "", quality: "", score: null, latency: null, lost: null, batch: null,
  codec: "", parametersCodec: "", compute: null, waiting: null, upMbit: null, bytesUp: 0, bytesDown: 0, lastUp: 0, lastDown: 0,
  contributed: 0, selected: 0, lastRound: 0, inRound: false, done: false, standing: "", rule: "",
};

const LONGEST = 1e9; // seconds, some 30 years
const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
const object = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : {});

/** A line of a file of the run as a record, or null if it has no time. Nothing in it is trusted. */
export function record(type, data) {
  if (!data || typeof data !== "object" || Array.isArray(data)) return null;
  const t = number(type === "round" ? data.ended_seconds : data.seconds);
  if (t === null || t < 0 || t > LONGEST) return null; // one wrong time would stretch every axis
  if (type === "round") {
    const seconds = Math.max(0, number(data.seconds) ?? 0);
    return {
      type, t, seconds, number: number(data.round) ?? 0, reason: String(data.reason ?? ""), data,
      came: new Set(strings(data.contributors)), missing: new Set(strings(data.missing)),
      down: total(data.bytes_down), up: total(data.bytes_up),
    };
  }
  const kind = String(data.kind ?? ""), text = String(data.text ?? "");
  const decided = kind === "decision";
  return {
    type, t, text, decided, number: number(data.round) ?? 0, kind: decided ? text.split(" ", 1)[0] : kind,
    subject: String(data.subject ?? data.node ?? ""), reason: String(data.reason ?? ""), figures: object(data.figures), data,
  };
}

function total(column) {
  let sum = 0;
  for (const value of Object.values(object(column))) sum += number(value) ?? 0;
  return sum;
}

function strings(value) {
  return Array.isArray(value) ? value.map(String) : [];
}

export function apply(state, { type, ...rest }) {
  state.t = Math.max(state.t, rest.t);
  if (type === "round") applyRound(state, rest);
  else if (rest.decided) applyDecision(state, rest);
  else applyEvent(state, rest);
}

function change(state, id, changes) {
  state.nodes.set(id, { ...(state.nodes.get(id) ?? { ...NEW_NODE, id }), ...changes });
}

function applyEvent(state, { kind, text, subject, number: round, data }) {
  switch (kind) {
    case "node_joined":
      change(state, subject, { connected: true, gone: "", done: false, gpu: String(data.gpu ?? "") });
      break;
    case "node_ready":
      change(state, subject, { connected: true, ready: true });
      break;
    case "node_left":
    case "node_lost":
      // Who leaves because the run is over is shown as it was: nothing is wrong with it.
      if (data.reason === "completed") change(state, subject, { ready: false, done: true });
      else change(state, subject, { connected: false, ready: false, gone: text });
      break;
    case "waiting":
      state.waiting = text;
      break;
    case "round_started":
      Object.assign(state, { round, running: true, run: "running", waiting: "" });
      break;
    case "round_closed":
    case "round_abandoned":
      state.running = false;
      break;
    case "paused":
      state.run = "paused";
      break;
    case "resumed":
      state.run = "running";
      break;
    case "completed":
    case "stopped":
      Object.assign(state, { run: kind, ended: text, running: false, waiting: "" });
      break;
    default:
  }
}

function applyDecision(state, { kind, subject, reason, figures }) {
  const isCluster = subject === "cluster";
  if (kind === "phase") state.phase = String(figures.to ?? "");
  else if (kind === "policy") state.policy = String(figures.to ?? "");
  else if (kind === "local_steps" && isCluster) state.steps = number(figures.to) ?? state.steps;
  else if (kind === "quality" && isCluster) state.classes = figures;
  if (isCluster || !subject) return;
  if (kind === "quality") {
    const { quality, score, latency_ms: latency, loss_rate: lost } = figures;
    change(state, subject, { quality: String(quality ?? ""), score: number(score), latency: number(latency), lost: number(lost) });
  } else if (kind === "batch_size") change(state, subject, { batch: number(figures.to) });
  else if (kind === "quarantine") change(state, subject, { standing: String(figures.state ?? reason) });
  else if (kind === "rule") change(state, subject, { rule: String(figures.to ?? reason) });
}

function applyRound(state, { number: round, data, came, missing, seconds }) {
  Object.assign(state, {
    round: Math.max(state.round, round), roundSeconds: seconds, loss: number(data.loss) ?? state.loss,
    steps: number(data.local_steps) ?? state.steps, rate: number(data.learning_rate) ?? state.rate,
    optimizer: String(data.local_optimizer ?? state.optimizer), utilisation: number(data.compute_utilisation),
  });
  const columns = ["batch_sizes", "codec", "parameters_codec", "compute_seconds", "waiting_seconds", "upload_seconds"];
  const [batch, codec, parametersCodec, compute, waiting, upload] = columns.map((name) => object(data[name]));
  const down = object(data.bytes_down), up = object(data.bytes_up);
  const named = new Set([...came, ...missing, ...Object.keys(down), ...Object.keys(up)]);
  for (const id of named) {
    const before = state.nodes.get(id) ?? { ...NEW_NODE, id };
    const sent = number(down[id]) ?? 0, received = number(up[id]) ?? 0, took = number(upload[id]);
    const chosen = came.has(id) || missing.has(id);
    state.nodes.set(id, {
      ...before, lastDown: sent, lastUp: received, bytesDown: before.bytesDown + sent, bytesUp: before.bytesUp + received,
      upMbit: took && received ? (8 * received) / took / 1e6 : before.upMbit,
      batch: number(batch[id]) ?? before.batch, codec: String(codec[id] ?? before.codec),
      parametersCodec: String(parametersCodec[id] ?? before.parametersCodec),
      compute: number(compute[id]) ?? before.compute, waiting: number(waiting[id]) ?? before.waiting,
      contributed: before.contributed + came.has(id), selected: before.selected + chosen,
      lastRound: came.has(id) ? round : before.lastRound,
    });
    state.down += sent;
    state.up += received;
  }
  for (const [id, node] of state.nodes) {
    const inRound = came.has(id) || missing.has(id);
    if (node.inRound !== inRound) change(state, id, { inRound });
  }
}
