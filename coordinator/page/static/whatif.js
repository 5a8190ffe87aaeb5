// What if: the rounds that a rehearsal predicts with another policy, as dashed lines beside those of the run.

import { element, figure } from "./format.js";
import { record } from "./state.js";

export class WhatIf {
  constructor(box, changed) {
    Object.assign(this, { box, changed });
    this.take(null);
  }

  /** Take what what_if.json says, of which nothing is trusted; null for nothing. */
  take(found) {
    const { policy, fault, ratio, round, unknown } = found ?? {};
    const rounds = (rows) => (Array.isArray(rows) ? rows.map((row) => record("round", row)).filter(Boolean) : []);
    this.ghosts = !found || fault ? [] : [["unchanged", found.now, "soft"], [policy, found.then, "ghost"]]
      .map(([name, rows, colour]) => ({ name: `if ${name}`, rounds: rounds(rows), colour }));
    this.end = Math.max(0, ...this.ghosts.flatMap((ghost) => ghost.rounds.map((row) => row.t)));
    this.box.hidden = !found;
    if (!found) return;
    const range = Number.isFinite(ratio?.ci_low) ? ` (${figure(ratio.ci_low, 3)} to ${figure(ratio.ci_high, 3)})` : "";
    const text = fault ? `What if the policy were ${policy}? No answer: ${fault}.`
      : `What if the policy were ${policy} after round ${figure(round)}? Rehearsed in virtual time, a round takes ${figure(ratio?.mean, 3)}${range} times as long.`;
    const gaps = Array.isArray(unknown) ? unknown.map((text) => element("li", { text: String(text) })) : [];
    this.box.replaceChildren(`${text} `, element("button", { type: "button", text: "Hide", onclick: () => { this.take(null); this.changed(); } }),
      gaps.length ? element("details", {}, element("summary", { text: "What is not known" }), element("ul", {}, ...gaps)) : "");
  }
}
