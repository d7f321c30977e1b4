// Many texts asked in pieces: paused, cancelled, gone on with; patient with a busy server, and exact about rows that fail.
import { patience, Problem, sleep } from "./api.js";

const AT_ONCE = 2; // the next piece waits at the server while one is scored
const MOST_TEXTS = 64;
const MOST_CHARACTERS = 100_000;
const QUICK_MS = 700;
const SLOW_MS = 3000;
// so many rows refused, and none answered: it is not the rows
const HOPELESS = 5;
const [GO_ON, LEAVE] = ["go on", "leave"];

export class Job {
  // texts: a string a row, or null where a row has none; ask(texts, signal) resolves to the results of a piece.
  constructor(texts, ask, onChange) {
    Object.assign(this, { texts, ask, onChange, state: "ready", results: new Array(texts.length), problem: null });
    Object.assign(this, { answered: 0, failed: 0, empty: 0, waitUntil: null, flying: 0, busyMs: 0 });
    this.size = 8;
    this.most = MOST_TEXTS;
    this.lanes = AT_ONCE;
    this.next = 0;
    this.again = [];
    this.stop = new AbortController();
  }

  get done() { return this.answered + this.failed + this.empty; }
  get running() { return this.state === "running"; }
  get perSecond() { return this.answered / Math.max(0.001, (this.busyMs + (this.since ? performance.now() - this.since : 0)) / 1000); }

  // Goes on from where it is; resolves when it is done, paused, cancelled or stopped by a problem.
  async run() {
    if (!["ready", "paused", "stopped"].includes(this.state)) return;
    this.state = "running";
    this.problem = null;
    this.since = performance.now();
    this.wake = new AbortController();
    this.onChange();
    const here = (this.round = (async () => {
      await this.earlier;
      await Promise.all(Array.from({ length: this.lanes }, () => this.work()));
    })());
    this.earlier = here.catch(() => {});
    try {
      await here;
    } finally {
      if (this.round === here) this.end();
    }
  }

  end() {
    this.halt();
    if (this.state === "running") this.state = "done";
    this.onChange();
  }

  halt() {
    if (this.since) this.busyMs += performance.now() - this.since;
    this.since = null;
    this.waitUntil = null;
  }

  // What is on its way is still taken.
  pause() { this.leave("paused"); }

  cancel() {
    this.leave("cancelled");
    this.stop.abort();
  }

  leave(state) {
    if (["done", "cancelled"].includes(this.state)) return;
    this.halt();
    this.state = state;
    this.wake?.abort();
    this.onChange();
  }

  async work() {
    while (this.running) {
      const rows = this.take();
      if (!rows.length || (await this.piece(rows)) === LEAVE) return;
    }
  }

  take() {
    const rows = [];
    let characters = 0;
    while (rows.length < this.size) {
      const part = this.again[this.again.length - 1];
      if (!part && this.next >= this.texts.length) break;
      const row = part ? part[0] : this.next;
      const text = this.texts[row];
      if (text !== null && rows.length && characters + text.length > MOST_CHARACTERS) break;
      if (part) part.shift(); else this.next += 1;
      if (text === null) {
        this.results[row] = { empty: true };
        this.empty += 1;
      } else {
        rows.push(row);
        characters += text.length;
      }
      if (part && !part.length) { this.again.pop(); if (rows.length) break; }
    }
    return rows;
  }

  async piece(rows) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        const start = performance.now();
        this.flying += 1;
        const found = await this.ask(rows.map((row) => this.texts[row]), this.stop.signal).finally(() => { this.flying -= 1; });
        rows.forEach((row, i) => { this.results[row] = found[i]; });
        this.answered += rows.length;
        this.adapt(performance.now() - start, rows.length);
        this.waitUntil = null;
        this.onChange();
        return GO_ON;
      } catch (problem) {
        if (!(problem instanceof Problem)) { this.end(); throw problem; }
        const next = await this.settled(problem, rows, attempt);
        if (next) return next;
      }
    }
  }

  // What its worker does next; null where the piece should be asked again now.
  async settled(problem, rows, attempt) {
    if (this.state === "cancelled") return GO_ON;
    if (problem.kind === "busy" && this.flying > 0) {
      // the server has its hands full with our other piece; whoever waits for that goes on with these rows too
      this.lanes = 1;
      this.again.push(rows);
      return LEAVE;
    }
    const wait = patience(problem, attempt);
    if (wait !== null) {
      this.waitUntil = Date.now() + 1000 * wait;
      this.onChange();
      await sleep(wait, this.wake.signal);
      this.waitUntil = null;
      // a piece may be more than a busy server has room for
      if (this.running && problem.kind !== "busy") return null;
      this.size = Math.max(1, this.size >> 1);
      this.again.push(rows);
      return GO_ON;
    }
    if (!this.running) {
      this.again.push(rows);
      return GO_ON;
    }
    const ofTheRows = ["bad", "large"].includes(problem.kind) && !["model", "candidates", "threshold"].includes(problem.param);
    if (ofTheRows && rows.length > 1) {
      const half = rows.length >> 1;
      this.again.push(rows.slice(half), rows.slice(0, half));
      if (problem.kind === "large") this.size = this.most = half;
      return GO_ON;
    }
    if (ofTheRows && (this.answered > 0 || this.failed + 1 < HOPELESS)) {
      this.results[rows[0]] = { problem };
      this.failed += 1;
      this.onChange();
      return GO_ON;
    }
    this.again.push(rows, ...(ofTheRows ? this.unfail() : []));
    this.problem = problem;
    this.leave("stopped");
    return GO_ON;
  }

  // The rows that failed, to be asked again.
  unfail() {
    const rows = [];
    this.results.forEach((result, row) => { if (result.problem) { rows.push([row]); delete this.results[row]; } });
    this.failed = 0;
    return rows;
  }

  adapt(ms, count) {
    if (ms < QUICK_MS && count >= this.size) this.size = Math.min(this.most, this.size * 2);
    else if (ms > SLOW_MS) this.size = Math.max(1, this.size >> 1);
  }
}
