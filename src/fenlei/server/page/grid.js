// The answers of a file as a table: counted, filtered, ordered, paged and saved.
import { plainText, save, toCsv, toJsonLines } from "./download.js";
import { answerView } from "./result.js";
import { byId, el, percent, w, whole } from "./view.js";

const PAGE_ROWS = 50;
const FIRST_COUNTS = 8;
const START = { q: "", label: null, show: "all", sort: "row", down: false, page: 1, every: false };
let data = null; // {name, table, texts, job, rule}
let state = { ...START };
let lowered = null;
let frame = null;

const answered = (r) => Boolean(r) && !r.empty && !r.problem;
const SHOWN = {
  all: () => true, answered: (r) => answered(r) && !r.abstained, declined: (r) => answered(r) && r.abstained,
  cut: (r) => answered(r) && r.truncated, failed: (r) => Boolean(r) && !answered(r), open: (r) => !r,
};
const SORTS = { row: (i) => i, label: (i) => (answered(result(i)) ? result(i).label : null), probability: (i) => (answered(result(i)) ? result(i).probability : null) };
const result = (i) => data.job.results[i];

export function showGrid(next) {
  data = next;
  state = { ...START };
  lowered = null;
  frame = null;
}

export function forgetGrid() {
  data = null;
  frame = null;
  byId("grid").replaceChildren();
}

// Puts the whole in place once, later only what changes, so that fields keep their focus.
export function drawGrid() {
  if (!data || !data.job.done) return;
  if (!frame || frame.lang !== document.documentElement.lang || !byId("grid").contains(frame.box)) build();
  keepingFocus(frame.counts, () => frame.counts.replaceChildren(...counts()));
  drawRows();
}

function build() {
  const lang = document.documentElement.lang;
  frame = { lang, counts: el("div", { class: "counts-box" }), tools: el("div", { class: "tools", role: "search" }), rows: el("div", {}) };
  const download = (kind) => el("button", { type: "button", id: `save-${kind}`, onclick: () => saveAs(kind) }, w(`save_${kind}`));
  frame.box = el("div", { class: "card", id: "grid-card" },
    el("div", { class: "line" }, el("h2", {}, w("results")), el("div", { class: "actions" }, download("csv"), download("jsonl"))),
    el("p", { class: "soft small" }, w("saveNote")), frame.counts, frame.tools, frame.rows);
  fillTools();
  byId("grid").replaceChildren(frame.box);
}

function fillTools() {
  let timer = 0;
  const set = (more) => { Object.assign(state, more, { page: 1 }); drawRows(); drawCounts(); };
  const search = el("input", { type: "search", id: "grid-search", value: state.q, oninput: (event) => { clearTimeout(timer); timer = setTimeout(() => set({ q: event.target.value }), 120); } });
  const pick = (id, words, value, options, act) => el("label", {}, el("span", {}, w(words)), el("select", { id, onchange: (event) => act(event.target.value) },
    options.map(([key, text]) => el("option", { value: key, selected: key === value }, text))));
  frame.tools.replaceChildren(
    el("label", { class: "search" }, el("span", {}, w("search")), search),
    pick("grid-show", "show", state.show, Object.keys(SHOWN).map((key) => [key, w(`show_${key}`)]), (show) => set({ show })),
    pick("grid-sort", "sort", `${state.sort}${state.down ? "-down" : ""}`, ["row", "label", "probability-down", "probability"].map((key) => [key, w(`sort_${key}`)]),
      (value) => set({ sort: value.replace("-down", ""), down: value.endsWith("-down") })),
    el("button", { type: "button", id: "grid-clear", onclick: () => { state = { ...START, every: state.every }; fillTools(); drawRows(); drawCounts(); byId("grid-clear").focus(); } }, w("clearFilter")));
}

const drawCounts = () => keepingFocus(frame.counts, () => frame.counts.replaceChildren(...counts()));

function keepingFocus(box, draw) {
  const key = box.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  draw();
  if (key) [...box.querySelectorAll("[data-key]")].find((node) => node.dataset.key === key)?.focus();
}

function counts() {
  const found = new Map();
  let [declined, all] = [0, 0];
  for (const r of data.job.results) {
    if (!answered(r)) continue;
    all += 1;
    if (r.abstained) declined += 1;
    else found.set(r.label, (found.get(r.label) || 0) + 1);
  }
  const pairs = [...found].sort((a, b) => b[1] - a[1]);
  const most = Math.max(1, declined, ...pairs.map(([, n]) => n));
  const line = (key, name, n, pressed, act, more) => el("li", {}, el("button", { type: "button", class: more, "data-key": key, "aria-pressed": String(pressed), onclick: act },
    el("span", { class: "of" }, name), el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: "fill", css: { width: `${(100 * n) / most}%` } })),
    el("span", { class: "p" }, whole(n), el("small", {}, ` ${percent(n / all, 0)}`))));
  const shown = state.every ? pairs : pairs.slice(0, FIRST_COUNTS);
  const lines = shown.map(([name, n]) => line(`l:${name}`, name, n, state.label === name, () => filter({ label: state.label === name ? null : name })));
  if (declined) lines.push(line("declined", w("noAnswer"), declined, state.show === "declined", () => filter({ label: null, show: state.show === "declined" ? "all" : "declined" }), "abstained"));
  const more = pairs.length > FIRST_COUNTS ? [el("button", { type: "button", class: "link", "data-key": "every", "aria-expanded": String(state.every), onclick: () => { state.every = !state.every; drawCounts(); } }, state.every ? w("less") : w("countsAll", { n: whole(pairs.length) }))] : [];
  return [el("ul", { class: "counts", "aria-label": w("counts") }, lines), ...more];
}

function filter(more) {
  Object.assign(state, more, { page: 1 });
  fillTools();
  drawCounts();
  drawRows();
}

function matching() {
  const q = state.q.trim().toLowerCase();
  if (q && !lowered) lowered = data.texts.map((text) => (text ?? "").toLowerCase());
  const keep = SHOWN[state.show];
  const found = [];
  for (let i = 0; i < data.texts.length; i += 1) {
    const r = result(i);
    if (keep(r) && (state.label === null || (answered(r) && !r.abstained && r.label === state.label)) && (!q || lowered[i].includes(q) || (answered(r) && r.label.toLowerCase().includes(q)))) found.push(i);
  }
  if (state.sort === "row" && !state.down) return found;
  const value = SORTS[state.sort];
  const sign = state.down ? -1 : 1;
  const compare = (a, b) => (a < b ? -sign : a > b ? sign : 0);
  const keyed = found.map((i) => [i, value(i)]);
  // rows without an answer come last in both directions
  return keyed.sort((a, b) => (a[1] === null) - (b[1] === null) || compare(a[1], b[1]) || a[0] - b[0]).map(([i]) => i);
}

function drawRows() {
  // an opened row is being read
  if (data.job.running && frame.rows.querySelector('.open[aria-expanded="true"]') && frame.shown === JSON.stringify(state)) return;
  frame.shown = JSON.stringify(state);
  const found = matching();
  const pages = Math.max(1, Math.ceil(found.length / PAGE_ROWS));
  state.page = Math.min(state.page, pages);
  const rows = found.slice((state.page - 1) * PAGE_ROWS, state.page * PAGE_ROWS);
  keepingFocus(frame.rows, () => frame.rows.replaceChildren(el("p", { class: "soft small", role: "status" }, w("found", { n: whole(found.length), all: whole(data.texts.length) })),
    rows.length ? rowsTable(rows) : el("p", { class: "soft empty" }, w("nothing")), pages > 1 ? pager(pages) : ""));
}

function rowsTable(rows) {
  const head = (key, words) => el("th", { scope: "col", class: key, "aria-sort": state.sort === key ? (state.down ? "descending" : "ascending") : null },
    el("button", { type: "button", "data-key": `sort:${key}`, onclick: () => filter({ down: state.sort === key ? !state.down : key === "probability", sort: key }) }, w(words), el("span", { class: "arrow", "aria-hidden": "true" }, state.sort === key ? (state.down ? " ↓" : " ↑") : "")));
  return el("table", { class: "rows" }, el("thead", {}, el("tr", {}, head("row", "rowNumber"), el("th", { scope: "col", class: "text" }, w("text")), head("label", "label"), head("probability", "probability"))),
    el("tbody", {}, rows.map(rowLines)));
}

function rowLines(i) {
  const r = result(i);
  const text = data.texts[i];
  const more = el("tr", { class: "more", hidden: true });
  const can = answered(r);
  const cell = can ? el("button", { type: "button", class: "open", "data-key": `row:${i}`, "aria-expanded": "false", onclick: (event) => {
    if (more.hidden && !more.childNodes.length) more.append(el("td", { colspan: "4" }, el("p", { class: "whole" }, text), answerView(r, { rule: data.rule, large: false }), others(i)));
    more.hidden = !more.hidden;
    event.currentTarget.setAttribute("aria-expanded", String(!more.hidden));
  } }, text.slice(0, 300)) : text === null ? null : el("span", { class: "soft" }, text.slice(0, 300));
  const label = can ? [r.abstained ? el("span", { class: "declined" }, w("noAnswer")) : el("strong", {}, r.label), r.truncated ? [" ", el("span", { class: "tag warn", title: w("cutTitle") }, w("cutShort"))] : null]
    : el("span", { class: r?.problem ? "bad" : "soft" }, why(r));
  return [el("tr", { class: can && r.abstained ? "abstained" : null }, el("td", { class: "row" }, whole(i + 1)), el("td", { class: "text" }, cell), el("td", { class: "label" }, label),
    el("td", { class: "probability" }, can ? [el("span", { class: "mini", "aria-hidden": "true" }, el("span", { class: "fill", css: { width: `${100 * r.probability}%` } })), percent(r.probability)] : "")), more];
}

// The other columns of the row.
function others(i) {
  const { columns, rows, column } = data.table;
  const pairs = columns.map((name, c) => [name, rows[i][c]]).filter(([, value], c) => c !== column && value !== undefined && value !== null && value !== "");
  return pairs.length ? el("dl", { class: "facts" }, pairs.slice(0, 30).map(([name, value]) => [el("dt", {}, name), el("dd", {}, plainText(value).slice(0, 500))])) : null;
}

// Why a row has no answer; null where it has one.
function why(r) {
  if (answered(r)) return null;
  if (!r) return w("notAsked");
  return r.empty ? w("emptyText") : r.problem.words;
}

function pager(pages) {
  const turn = (by) => { state.page += by; drawRows(); frame.rows.scrollIntoView({ block: "start" }); };
  return el("div", { class: "pager" }, el("button", { type: "button", "data-key": "previous", disabled: state.page === 1, onclick: () => turn(-1) }, w("previous")),
    el("span", {}, w("page", { p: whole(state.page), n: whole(pages) })), el("button", { type: "button", "data-key": "next", disabled: state.page === pages, onclick: () => turn(1) }, w("next")));
}

function saveAs(kind) {
  const stem = data.name.replace(/\.[a-z]+$/i, "") || "fenlei";
  const make = kind === "csv" ? toCsv : toJsonLines;
  save(`${stem}-${w("savedName")}.${kind}`, make(data.table, data.job.results, why), kind === "csv" ? "text/csv" : "application/x-ndjson");
}
