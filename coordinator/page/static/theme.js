// Colours and sizes of the style sheet, for what is drawn on a canvas.

const names = [
  "page", "card", "ink", "soft", "line", "grid", "edge", "accent", "ghost", "band", "band-2", "excellent", "good", "fair", "poor",
  "critical", "offline", "unknown", "left-out", "quarantine", "b0", "b1", "b2", "b3", "b4", "b5", "waiting",
];
export const colours = {};
export const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", "DejaVu Sans", sans-serif';

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of names) colours[name] = style.getPropertyValue(`--${name}`).trim();
}

/** Call `redraw` when the colours change. */
export function onTheme(redraw) {
  readColours();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); redraw(); });
}

export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Pixels of a drawing's unit: more than one on a very large screen, as the style sheet has it for text. */
export const unit = () => parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;

/** Fit a canvas to its box, in the pixels of the screen; returns its context and its size in units. */
export function fitted(canvas, height = null) {
  const size = unit(), scale = Math.min(devicePixelRatio || 1, 2) * size;
  if (height !== null) canvas.style.height = `${height * size}px`;
  const width = canvas.clientWidth / size, tall = height ?? canvas.clientHeight / size;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(tall * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(tall * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return { context, width, height: tall };
}

/** The place of a pointer on a canvas, in units. */
export function pointed(canvas, event) {
  const box = canvas.getBoundingClientRect(), size = unit();
  return { x: (event.clientX - box.left) / size, y: (event.clientY - box.top) / size };
}
