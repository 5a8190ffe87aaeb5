// All records of a run in the order of time, and the state at any of them: from the nearest copy, by the records after it.

import { apply, copy, initial } from "./state.js";

const EVERY = 400; // records between two copies

export class History {
  constructor() {
    this.records = [];
    this.rounds = [];
    this.events = [];
    this.copies = []; // copies[n]: the state after n * EVERY records
    this.head = initial();
    this.applied = 0;
  }

  get begin() {
    return this.origin ?? this.records[0]?.t ?? 0;
  }

  get end() {
    return this.records.at(-1)?.t ?? 0;
  }

  /** Add records, which arrive in the order of each of two files. */
  add(batch) {
    const last = this.records.at(-1)?.t ?? -Infinity;
    this.records.push(...batch);
    for (const each of batch) (each.type === "round" ? this.rounds : this.events).push(each);
    if (batch.some((each, n) => each.t < (n ? batch[n - 1].t : last))) this.#sort(batch);
    if (this.origin === undefined) {
      const began = this.events.find((each) => each.kind === "round_started") ?? this.rounds[0];
      if (began) this.origin = began.t - (began.seconds ?? 0);
    }
    this.#advance();
  }

  /** The state at a time. */
  at(t) {
    return t >= this.end ? this.head : this.after(upTo(this.records, t));
  }

  /** The state after a number of records. */
  after(count) {
    const n = Math.min(Math.floor(count / EVERY), this.copies.length - 1);
    const state = n >= 0 ? copy(this.copies[n]) : initial();
    for (let at = Math.max(0, n * EVERY); at < count; at += 1) apply(state, this.records[at]);
    return state;
  }

  #sort(batch) {
    const first = batch.reduce((least, each) => Math.min(least, each.t), Infinity);
    const byTime = (a, b) => a.t - b.t;
    for (const list of [this.records, this.rounds, this.events]) list.sort(byTime);
    const kept = Math.floor(upTo(this.records, first - 1e-9) / EVERY) + 1;
    if (this.applied <= (kept - 1) * EVERY) return;
    this.copies.length = Math.min(this.copies.length, kept);
    this.applied = Math.max(0, this.copies.length - 1) * EVERY;
    this.head = this.copies.length ? copy(this.copies.at(-1)) : initial();
  }

  #advance() {
    for (; this.applied < this.records.length; this.applied += 1) {
      if (this.applied % EVERY === 0 && this.copies.length === this.applied / EVERY) this.copies.push(copy(this.head));
      apply(this.head, this.records[this.applied]);
    }
  }
}

/** The number of records up to a time, by halving. */
export function upTo(records, t) {
  let low = 0, high = records.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (records[middle].t <= t) low = middle + 1;
    else high = middle;
  }
  return low;
}
