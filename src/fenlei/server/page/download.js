// Results as a file: the columns of the input as they were, then what `fenlei predict` writes.
import { pairsOf } from "./result.js";

const FIELDS = ["label", "probability", "probabilities", "abstained", "truncated"];
// What a spreadsheet would run. A plain number, such as -5, is none of it.
const FORMULA = /^[=+\-@\t\r\n\0\uff1d\uff0b\uff0d\uff20]/;
const NUMBER = /^[+-]?\d+(\.\d+)?([eE][+-]?\d+)?$/;

export const safe = (text) => (FORMULA.test(text) && !NUMBER.test(text) ? `'${text}` : text);

// One field: quoted where it has to be.
export function csvField(value) {
  const text = safe(plainText(value));
  return /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// A value as it stands in a CSV file.
export function plainText(value) {
  if (value === undefined || value === null) return "";
  if (typeof value === "string") return value;
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

// A column of the input whose name is taken becomes input_<name>.
function inputNames(columns, taken) {
  const names = new Set([...taken, ...columns]);
  return columns.map((name) => {
    if (!taken.includes(name)) return name;
    let found = `input_${name}`;
    while (names.has(found)) found = `input_${found}`;
    names.add(found);
    return found;
  });
}

function answer(result) {
  if (!result || result.empty || result.problem) return null;
  return { label: result.label, probability: result.probability, probabilities: Object.fromEntries(pairsOf(result)), abstained: result.abstained, truncated: result.truncated };
}

// why(result): the words for a row without an answer, or null.
function records(table, results, why) {
  const reasons = table.rows.map((_, i) => why(results[i]));
  const fields = reasons.some(Boolean) ? [...FIELDS, "error"] : FIELDS;
  const names = inputNames(table.columns, fields);
  return { fields, names, each: table.rows.map((row, i) => ({ row, values: { ...answer(results[i]), error: reasons[i] ?? undefined } })) };
}

export function toCsv(table, results, why) {
  const { fields, names, each } = records(table, results, why);
  const lines = [[...names, ...fields].map(csvField).join(",")];
  for (const { row, values } of each) lines.push([...names.map((_, c) => row[c]), ...fields.map((name) => values[name])].map(csvField).join(","));
  // the mark tells spreadsheets that this is UTF-8
  return `\ufeff${lines.join("\r\n")}\r\n`;
}

export function toJsonLines(table, results, why) {
  const { fields, names, each } = records(table, results, why);
  return each.map(({ row, values }) => {
    const pairs = [...names.map((name, c) => [name, row[c]]), ...fields.map((name) => [name, values[name] ?? (name === "error" ? undefined : null)])];
    return `${JSON.stringify(Object.fromEntries(pairs.filter(([, value]) => value !== undefined)))}\n`;
  }).join("");
}

export function save(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
