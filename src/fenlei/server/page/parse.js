// Tables out of text: CSV and TSV with quoted fields, JSON Lines, JSON, or a text a line.
// A table is {kind, columns, rows, faults}: a row is an array with a value for each column, undefined where it has none;
// a fault is {row, key}: the number, from 1, of the row (JSON Lines: of the line), and the key of words for what is wrong.
import { FileProblem } from "./decode.js";

const WRAPPERS = ["data", "rows", "examples", "items", "records"];
// As fenlei guesses them.
const TEXT_NAMES = ["text", "content", "sentence", "document", "review", "comment", "query", "question", "body", "input", "title", "文本", "内容", "正文", "句子", "标题"];

export function kindOf(name) {
  const suffix = /\.([a-z]+)$/i.exec(name)?.[1].toLowerCase() ?? "";
  const kind = { csv: "csv", tsv: "tsv", tab: "tsv", jsonl: "jsonl", ndjson: "jsonl", json: "json", txt: "txt" }[suffix];
  if (!kind) throw new FileProblem("fileKind", { suffix: suffix ? `.${suffix}` : name });
  return kind;
}

export function parse(text, kind, { header = true } = {}) {
  const body = text.replace(/^\ufeff/, "");
  const table = kind === "csv" || kind === "tsv" ? delimited(body, kind, header)
    : kind === "jsonl" ? jsonLines(body) : kind === "json" ? json(body) : lines(body);
  if (!table.rows.length) throw new FileProblem("fileEmpty");
  return { kind, ...table };
}

export function textColumn(columns, rows) {
  const plain = columns.map((name) => name.trim().toLowerCase());
  for (const name of TEXT_NAMES) if (plain.includes(name)) return plain.indexOf(name);
  // else the column with the longest texts
  const sample = rows.slice(0, 50);
  const lengths = columns.map((_, c) => sample.reduce((sum, row) => sum + (typeof row[c] === "string" ? row[c].length : 0), 0));
  return Math.max(0, lengths.indexOf(Math.max(...lengths)));
}

function lines(text) {
  const rows = text.split("\n").map((line) => line.replace(/\r$/, "")).filter((line) => line.trim()).map((line) => [line]);
  return { columns: ["text"], rows, faults: [] };
}

function delimited(text, kind, header) {
  const first = text.slice(0, text.search(/[\r\n]|$/));
  const mark = kind === "tsv" ? "\t" : first.includes(",") ? "," : [..."\t;"].find((c) => first.includes(c)) ?? ",";
  const quoted = csvRecords(text, mark);
  if (quoted.open && kind === "csv") throw new FileProblem("fileQuote", { n: quoted.records.length });
  const all = kind === "tsv" && text.includes('"') ? fewerFaults(quoted, plainRecords(text, mark)) : quoted.records;
  if (!all.length) return { columns: [], rows: [], faults: [] };
  const width = all[0].length;
  const names = header ? all.shift().map((name) => name.trim()) : [];
  const most = all.reduce((n, row) => Math.max(n, row.length), width);
  const columns = unique(Array.from({ length: most }, (_, i) => names[i] || `column_${i + 1}`));
  const faults = [];
  all.forEach((row, i) => { if (row.length !== width) faults.push({ row: i + 1, key: "fieldCount" }); });
  return { columns, rows: all, faults };
}

// Quotes in a TSV file enclose fields (Excel's way) or are plain characters (as in corpora): what gives even rows is meant.
function fewerFaults({ records, open }, plain) {
  const faults = (rows) => rows.filter((row) => row.length !== rows[0].length).length;
  return open || faults(plain) < faults(records) ? plain : records;
}

const plainRecords = (text, mark) => text.split(/\r?\n/).filter(Boolean).map((line) => line.split(mark));

// RFC 4180, and what is found beside it: line ends of all three kinds, quotes inside plain fields, blank lines.
export function csvRecords(text, mark = ",") {
  const records = [];
  const plain = new RegExp(`[${mark === "\t" ? "\\t" : mark}\\r\\n]`, "g");
  let row = [];
  let at = 0;
  while (at < text.length) {
    let field = "";
    const quoted = text[at] === '"';
    if (quoted) {
      at += 1;
      for (;;) {
        const end = text.indexOf('"', at);
        if (end < 0) return { records, open: true };
        field += text.slice(at, end);
        at = end + 1;
        if (text[at] !== '"') break;
        field += '"';
        at += 1;
      }
    }
    plain.lastIndex = at;
    const stop = plain.exec(text);
    const end = stop ? stop.index : text.length;
    field += text.slice(at, end);
    row.push(field);
    at = end + 1;
    if (stop && stop[0] === mark) {
      if (at >= text.length) row.push("");
      else continue;
    }
    if (stop && stop[0] === "\r" && text[at] === "\n") at += 1;
    if (row.length > 1 || row[0] !== "" || quoted) records.push(row);
    row = [];
  }
  return { records, open: false };
}

function unique(names) {
  const taken = new Set();
  return names.map((name) => {
    let found = name;
    for (let n = 2; taken.has(found); n += 1) found = `${name}_${n}`;
    taken.add(found);
    return found;
  });
}

// Numbers that JavaScript would change (1.0, 12345678901234567890) stay as they are written, where the browser can.
function exact(key, value, context) {
  return typeof value === "number" && context?.source && JSON.rawJSON && String(value) !== context.source ? JSON.rawJSON(context.source) : value;
}

export const readJson = (text) => JSON.parse(text, exact);

function jsonLines(text) {
  const found = [];
  const faults = [];
  // only \n ends a line: U+2028 and the like may stand inside one
  text.split("\n").forEach((line, i) => {
    const body = line.replace(/^[ \t\r\ufeff]+|[ \t\r\ufeff]+$/g, "");
    if (!body) return;
    try {
      const item = readJson(body);
      if (isRow(item)) found.push(item);
      else faults.push({ row: i + 1, key: "lineObject" });
    } catch {
      faults.push({ row: i + 1, key: "lineJson" });
    }
  });
  if (faults.length && !found.length) throw new FileProblem("fileJson");
  return table(found, faults);
}

function json(text) {
  let found;
  try {
    found = readJson(text);
  } catch {
    if (text.trim().includes("\n")) return jsonLines(text); // JSON Lines under the name .json
    throw new FileProblem("fileJson");
  }
  if (Array.isArray(found)) return table(found);
  for (const key of WRAPPERS) if (found && Array.isArray(found[key])) return table(found[key]);
  return table([found]);
}

const isRow = (item) => typeof item === "string" || (item !== null && typeof item === "object" && !Array.isArray(item) && !JSON.isRawJSON?.(item));

function table(items, faults = []) {
  const places = new Map();
  const rows = [];
  items.forEach((item, i) => {
    if (!isRow(item)) faults.push({ row: i + 1, key: "lineObject" });
    else rows.push(typeof item === "string" ? place(places, [], "text", item) : Object.entries(item).reduce((row, [name, value]) => place(places, row, name, value), []));
  });
  return { columns: [...places.keys()], rows, faults };
}

function place(places, row, name, value) {
  if (!places.has(name)) places.set(name, places.size);
  row[places.get(name)] = value;
  return row;
}
