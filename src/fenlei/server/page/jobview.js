// How far a file is: progress, pause, cancel, and what stands in the way.
import { drawGrid } from "./grid.js";
import { notice, noticeBox } from "./notice.js";
import { byId, duration, el, percent, say, w, whole } from "./view.js";

const REFRESH_MS = 400;
const TOLD_EVERY = 0.25;

export class JobView {
  constructor(job, { base, short, again }) {
    Object.assign(this, { job, base, short, again, state: null, told: 0, timer: 0, drawn: 0 });
  }

  // Something changed: shown soon, not each time.
  changed() {
    if (this.job.state !== this.state) { this.draw(); drawGrid(); return; }
    if (this.timer) return;
    this.timer = setTimeout(() => { this.timer = 0; this.update(); drawGrid(); }, REFRESH_MS);
  }

  draw() {
    const { job } = this;
    const focused = byId("job").contains(document.activeElement);
    const was = this.state;
    this.state = job.state;
    this.fill = el("div", { class: "fill" });
    this.bar = el("div", { class: "track progress", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": job.texts.length, "aria-label": w("progress") }, this.fill);
    this.line = el("p", { class: "soft small", id: "job-line" });
    this.extra = el("div", {});
    const buttons = { running: [["pause", "pause", () => job.pause()], ["cancel", "cancel", () => job.cancel()]],
      paused: [["pause", "goOn", () => this.go()], ["cancel", "cancel", () => job.cancel()]],
      stopped: [["pause", "goOn", () => this.go()], ["cancel", "cancel", () => job.cancel()]] }[job.state] || [["again", "again", this.again]];
    byId("job").replaceChildren(el("div", { class: "card job" }, el("div", { class: "line" }, el("h2", {}, w(`job_${job.state}`)),
      el("div", { class: "actions" }, buttons.map(([id, words, act], i) => el("button", { type: "button", id, class: job.state !== "running" && i === 0 && id === "pause" ? "primary" : null, onclick: act }, w(words))))),
    this.bar, this.line, this.extra, this.short ? el("p", { class: "soft small" }, w("fewProbabilities")) : null));
    this.update();
    if (focused) byId(buttons[0][0]).focus();
    if (was !== job.state) say([w(`job_${job.state}`), this.line.textContent].join(". "));
  }

  go() {
    notice(null);
    this.job.run();
  }

  update() {
    const { job } = this;
    const all = job.texts.length;
    const share = all ? job.done / all : 1;
    this.fill.style.setProperty("width", `${100 * share}%`);
    this.bar.setAttribute("aria-valuenow", job.done);
    this.bar.setAttribute("aria-valuetext", percent(share, 0));
    const left = job.running && job.answered > 0 ? (all - job.done) / job.perSecond : null;
    this.line.textContent = [w("doneOf", { n: whole(job.done), all: whole(all) }), job.answered ? w("perSecond", { n: rate(job.perSecond) }) : null,
      left ? w("left", { t: duration(left) }) : null, job.empty ? w("emptyCount", { n: whole(job.empty) }) : null, job.failed ? w("failedCount", { n: whole(job.failed) }) : null].filter(Boolean).join(" · ");
    this.extra.replaceChildren(...this.hindrance());
    if (job.running && share >= this.told + TOLD_EVERY && share < 1) {
      this.told = Math.floor(share / TOLD_EVERY) * TOLD_EVERY;
      say(this.line.textContent);
    }
  }

  hindrance() {
    const { job } = this;
    if (job.problem) return [el("div", { class: "note bad" }, noticeBox(job.problem))];
    if (!job.running || !job.waitUntil || job.flying) return [];
    if (!this.timer) this.timer = setTimeout(() => { this.timer = 0; this.update(); }, REFRESH_MS);
    return [el("p", { class: "note warn" }, w("busyWait", { n: Math.max(1, Math.ceil((job.waitUntil - Date.now()) / 1000)) }))];
  }
}

const rate = (n) => (n >= 10 ? whole(Math.round(n)) : n.toFixed(1));
