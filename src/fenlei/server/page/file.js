// A file of texts: chosen or dropped, read here, asked in pieces, shown as a table.
import { classify, Problem } from "./api.js";
import { decode, ENCODINGS, FileProblem } from "./decode.js";
import { plainText } from "./download.js";
import { drawGrid, forgetGrid, showGrid } from "./grid.js";
import { Job } from "./job.js";
import { JobView } from "./jobview.js";
import { notice } from "./notice.js";
import { kindOf, parse, textColumn } from "./parse.js";
import { current, requestBase, ruleOf, settings } from "./settings.js";
import { byId, el, onLanguage, say, w, whole } from "./view.js";

const MOST_BYTES = 64 * 2 ** 20;
const MOST_ROWS = 200_000;
const MOST_PROBABILITIES = 1_000_000;
const FEW = 10;
let source = null; // {name, bytes, wanted, header} or {name, texts}
let table = null;
let view = null;

export function startFile(onFile) {
  const input = byId("file-input");
  byId("choose").addEventListener("click", () => input.click());
  input.addEventListener("change", () => { if (input.files.length) take(input.files[0]); input.value = ""; });
  // a file that misses the place would replace the page
  for (const kind of ["dragenter", "dragover"]) window.addEventListener(kind, (event) => {
    if (![...(event.dataTransfer?.types || [])].includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  window.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    onFile();
    take(event.dataTransfer.files[0]);
  });
  window.addEventListener("beforeunload", (event) => { if (active()) event.preventDefault(); });
  onLanguage(draw);
}

const active = () => view !== null && ["running", "paused"].includes(view.job.state);

async function take(file) {
  if (active()) return notice("jobFirst");
  notice(null);
  try {
    kindOf(file.name);
    if (file.size > MOST_BYTES) throw new FileProblem("fileLarge", { name: file.name, n: MOST_BYTES / 2 ** 20 });
    source = { name: file.name, bytes: new Uint8Array(await file.arrayBuffer()), wanted: null, header: true };
    load();
    say(w("fileRead", { name: file.name, n: whole(table.rows.length) }));
    byId("start")?.focus();
  } catch (problem) {
    refuse(problem);
  }
}

// Many lines from the box of the other tab.
export function openLines(texts) {
  if (active()) return notice("jobFirst");
  forget();
  source = { name: w("pastedName"), texts };
  table = { kind: "txt", columns: ["text"], rows: texts.map((text) => [text]), faults: [], column: 0, encoding: null, damaged: false };
  draw();
  return start();
}

function load() {
  forget();
  const { text, encoding, damaged } = decode(source.bytes, source.wanted);
  const found = parse(text, kindOf(source.name), { header: source.header });
  if (found.rows.length > MOST_ROWS) throw new FileProblem("fileRows", { name: source.name, n: whole(MOST_ROWS), all: whole(found.rows.length) });
  table = { ...found, encoding, damaged, column: textColumn(found.columns, found.rows) };
  draw();
}

function forget() {
  view?.job.cancel();
  view = null;
  table = null;
  byId("job").replaceChildren();
  forgetGrid();
}

function refuse(problem) {
  if (problem instanceof FileProblem) notice(problem.key, problem.values);
  else if (problem && problem.name === "NotReadableError") notice("fileUnreadable");
  else throw problem;
  forget();
  source = null;
  draw();
}

function reload(more) {
  Object.assign(source, more);
  notice(null);
  try { load(); } catch (problem) { refuse(problem); }
}

function draw() {
  byId("drop-here").hidden = table !== null;
  byId("file-view").hidden = table === null;
  if (table) byId("file-view").replaceChildren(...fileView());
  view?.draw();
  drawGrid();
}

function fileView() {
  const busy = view !== null;
  const sized = [w("rowsCount", { n: whole(table.rows.length) }), w("columnsCount", { n: whole(table.columns.length) }), table.encoding ? table.encoding.toUpperCase() : null];
  return [
    el("div", { class: "line" }, el("div", { class: "file-name" }, el("h2", {}, source.name), el("span", { class: "soft small" }, sized.filter(Boolean).join(" · "))),
      el("button", { type: "button", onclick: () => byId("file-input").click() }, w("otherFile"))),
    ...notes(),
    source.bytes ? el("div", { class: "tools" }, columnSelect(busy), encodingSelect(busy), headerChoice(busy)) : null,
    preview(),
    view ? null : el("div", { class: "actions" }, el("button", { type: "button", id: "start", class: "primary", onclick: start }, w("classifyAll", { n: whole(table.rows.length) }))),
  ].filter(Boolean);
}

function notes() {
  const groups = new Map();
  for (const { key, row } of table.faults) groups.set(key, groups.get(key) || []).get(key).push(row);
  const found = [...groups].map(([key, rows]) => w(key, { n: whole(rows.length), first: whole(rows[0]) }));
  if (table.damaged) found.unshift(w("fileDamaged", { encoding: table.encoding.toUpperCase() }));
  return found.map((words) => el("p", { class: "note warn" }, words));
}

const labelled = (words, control) => el("label", {}, el("span", {}, w(words)), control);

function columnSelect(busy) {
  return labelled("textColumn", el("select", { id: "column", disabled: busy, onchange: (event) => { table.column = Number(event.target.value); restart(); draw(); byId("column").focus(); } },
    table.columns.map((name, i) => el("option", { value: i, selected: i === table.column }, name))));
}

function encodingSelect(busy) {
  return labelled("encoding", el("select", { id: "encoding", disabled: busy, onchange: (event) => { reload({ wanted: event.target.value || null }); byId("encoding")?.focus(); } },
    el("option", { value: "", selected: !source.wanted }, w("encodingFound", { encoding: source.wanted ? "" : table.encoding.toUpperCase() })),
    ENCODINGS.map((name) => el("option", { value: name, selected: source.wanted === name }, name.toUpperCase()))));
}

function headerChoice(busy) {
  if (table.kind !== "csv" && table.kind !== "tsv") return null;
  return el("label", { class: "choice" }, el("input", { type: "checkbox", id: "header", disabled: busy, checked: source.header, onchange: (event) => { reload({ header: event.target.checked }); byId("header")?.focus(); } }), el("span", {}, w("headerRow")));
}

function preview() {
  if (view) return null;
  const texts = [];
  for (const row of table.rows) {
    const text = textOf(row);
    if (text !== null) texts.push(text);
    if (texts.length === 3) break;
  }
  return el("div", { class: "preview" }, el("h3", {}, w("preview", { column: table.columns[table.column] })),
    texts.length ? el("ol", {}, texts.map((text) => el("li", {}, text.slice(0, 240)))) : el("p", { class: "note warn" }, w("columnEmpty")));
}

// What a row sends: null where there is nothing to read.
function textOf(row) {
  const text = plainText(row[table.column]);
  return text.trim() ? text : null;
}

// Another column: what was answered is of another text.
function restart() {
  view?.job.cancel();
  view = null;
  byId("job").replaceChildren();
  forgetGrid();
}

function start() {
  const base = requestBase();
  const labels = base.candidates?.length ?? current()?.labels?.length ?? 0;
  if (labels * table.rows.length > MOST_PROBABILITIES) base.top_k = FEW;
  const ask = async (texts, signal) => {
    const answer = await classify({ texts, ...base }, settings.key, signal);
    if (!Array.isArray(answer?.results) || answer.results.length !== texts.length) throw new Problem("odd");
    return answer.results;
  };
  const texts = table.rows.map(textOf);
  const job = new Job(texts, ask, () => view?.changed());
  view = new JobView(job, { name: source.name, base, short: Boolean(base.top_k), again: () => { restart(); draw(); byId("start").focus(); } });
  showGrid({ name: source.name, table, texts, job, rule: ruleOf(base) });
  draw();
  const run = job.run();
  byId("pause")?.focus();
  return run;
}
