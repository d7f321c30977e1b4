// A request as a command or a program that makes it again. The key stays out: it is named, not shown.
import { el, say, w } from "./view.js";

const KEY_NAME = "FENLEI_API_KEY";
const address = () => new URL("v1/classify", document.baseURI).href;
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function asCurl(body, withKey) {
  const lines = [`curl ${quoted(address())}`, "-H 'Content-Type: application/json'"];
  if (withKey) lines.push(`-H "Authorization: Bearer $${KEY_NAME}"`);
  lines.push(`--data-raw ${quoted(JSON.stringify(body))}`);
  return lines.join(" \\\n  ");
}

export function asPython(body, withKey) {
  const headers = ['"Content-Type": "application/json"'];
  if (withKey) headers.push(`"Authorization": "Bearer " + os.environ["${KEY_NAME}"]`);
  return [
    "import json", ...(withKey ? ["import os"] : []), "import urllib.request", "",
    `body = ${python(body, "")}`,
    "request = urllib.request.Request(",
    `    ${python(address(), "")},`,
    '    data=json.dumps(body).encode("utf-8"),',
    `    headers={${headers.join(", ")}},`,
    ")",
    "with urllib.request.urlopen(request) as response:",
    "    answer = json.load(response)",
    'for result in answer["results"]:',
    '    print(result["label"], result["probability"], "abstained" if result["abstained"] else "")',
  ].join("\n");
}

// A JSON value as Python writes it. JSON's string escapes are all Python's too.
function python(value, indent) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const deeper = `${indent}    `;
  const items = Array.isArray(value) ? value.map((v) => python(v, deeper)) : Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}: ${python(v, deeper)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return items.length ? `${open}\n${items.map((item) => `${deeper}${item},\n`).join("")}${indent}${close}` : open + close;
}

export function codeButtons(body, withKey) {
  const shown = el("div", { class: "code", hidden: true });
  const button = (words, make) => el("button", { type: "button", onclick: async () => {
    const code = make(body, withKey);
    const area = el("pre", { tabindex: "0", "aria-label": w(words) }, code);
    const note = el("p", { class: "soft small" });
    shown.replaceChildren(area, note);
    shown.hidden = false;
    const copied = await copy(code, area);
    note.textContent = w(copied ? "copied" : "copyYourself");
    say(note.textContent);
  } }, w(words));
  return [el("div", { class: "tools" }, button("copyCurl", asCurl), button("copyPython", asPython)), shown];
}

// navigator.clipboard exists on https and localhost only; elsewhere the code is selected for the user to copy.
async function copy(text, area) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const range = document.createRange();
    range.selectNodeContents(area);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    return false;
  }
}
