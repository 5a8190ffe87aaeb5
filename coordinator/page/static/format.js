// Figures, times and names as people read them; the same rules as the command line.

export const UNKNOWN = "–";

export const words = (name) => String(name).replaceAll("_", " ");

export function figure(value, digits = 4) {
  if (typeof value !== "number") return value === null || value === undefined ? UNKNOWN : String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
}

/** Steps of an axis of time, in seconds. */
export const TIME_STEPS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];

export function clock(seconds) {
  if (seconds < 0) return `−${clock(-seconds)}`;
  if (seconds < 60) return `${Number(seconds.toFixed(seconds < 1 ? 2 : 1))} s`;
  const minutes = Math.floor(seconds / 60), pad = (n) => String(n).padStart(2, "0");
  if (minutes < 60) return `${minutes}:${pad(Math.floor(seconds % 60))} min`;
  return `${Math.floor(minutes / 60)} h ${pad(minutes % 60)}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return UNKNOWN;
  if (seconds === 0) return "0 s";
  if (seconds < 1) return `${figure(1000 * seconds, 3)} ms`;
  return seconds < 100 ? `${figure(seconds, 3)} s` : clock(seconds);
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return UNKNOWN;
  const unit = ["B", "kB", "MB", "GB", "TB"];
  let n = 0, value = bytes;
  for (; value >= 1000 && n < 4; n += 1) value /= 1000;
  return `${n ? figure(value, 3) : value} ${unit[n]}`;
}

export const percent = (share, digits = 1) => (share === null ? UNKNOWN : `${(100 * share).toFixed(digits)} %`);
export const milliseconds = (value) => (value === null ? UNKNOWN : `${figure(value, 3)} ms`);
export const mbit = (value) => (value === null ? UNKNOWN : `${figure(value, 3)} Mbit/s`);

const order = new Intl.Collator("en", { numeric: true }).compare;
export const natural = order;

/** A figure of a decision: its name without the unit, and its value with it. */
export function named(name, value) {
  if (typeof value !== "number") return [words(name), words(value)];
  const units = [
    [/_?seconds$/, duration], [/_ms$/, milliseconds], [/_?mbit$/, mbit], [/_?bytes$/, size],
    [/_(rate|share|gain)$/, (each) => percent(each)],
  ];
  for (const [unit, show] of units) {
    if (unit.test(name)) return [words(name.replace(/_?(seconds|ms|mbit|bytes)$/, "")) || "time", show(value)];
  }
  return [words(name), figure(value)];
}

/** An element with text and children; text never becomes markup. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
