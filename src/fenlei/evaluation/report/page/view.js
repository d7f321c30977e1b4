// State, words and small helpers. Text of the data reaches the page through textContent only.
const DATA = JSON.parse(document.getElementById("data").textContent);
const NAMES = DATA.browser ? DATA.browser.names : DATA.labels;
// What the address leaves out.
const PLAIN = { gold: -1, said: -1, show: "wrong", sort: "sure", q: "", page: 1, curve: -1 };
const state = { lang: "en", theme: "light", ...PLAIN, price: null };

function w(key, values) {
  const text = WORDS[state.lang][key] ?? WORDS.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (all, name) => (values && name in values ? String(values[name]) : all));
}

// A remark by its key; one that a later fenlei wrote stays as it stands in report.json, in English.
function remark(holder) {
  const known = (holder.notes || []).every((n) => `note_${n.key}` in WORDS.en);
  if (!known || !(holder.notes || []).length) return holder.note ? [holder.note] : [];
  return holder.notes.map((n) => w(`note_${n.key}`, Object.fromEntries(Object.entries(n.values).map(([k, v]) => [k, Number.isInteger(v) && k !== "seed" ? whole(v) : v]))));
}

// el("p", {class: "lead", onclick: f}, "text", child, ...): attributes by name, handlers by on..., no markup.
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) node.append(child);
  return node;
}

const isNumber = (v) => typeof v === "number" && Number.isFinite(v);
const locale = () => (state.lang === "zh" ? "zh-CN" : "en");
const whole = (v) => (isNumber(v) ? v.toLocaleString(locale()) : "–");
const fixed = (v, digits = 3) => (isNumber(v) ? v.toFixed(digits) : "–");
const percent = (v, digits = 1) => (isNumber(v) ? `${(100 * v).toFixed(digits)} %`.replace(" %", state.lang === "zh" ? "%" : " %") : "–");
const range = (pair, f) => (pair ? `${f(pair[0])} – ${f(pair[1])}` : "");

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  const shown = (n) => n.toLocaleString(locale(), { maximumFractionDigits: n < 10 ? 1 : 0 });
  if (seconds < 0.1) return `< ${w("seconds", { n: "0.1" })}`;
  if (seconds < 90) return w("seconds", { n: shown(seconds) });
  if (seconds < 5400) return w("minutes", { n: shown(seconds / 60) });
  return w("hours", { n: shown(seconds / 3600) });
}

function bytes(n) {
  if (!isNumber(n)) return "–";
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (n >= 1000 && unit < units.length - 1) { n /= 1000; unit += 1; }
  return `${n.toFixed(n < 10 && unit ? 1 : 0)} ${units[unit]}`;
}

function section(id, lead, ...children) {
  return el("section", { id, "aria-labelledby": `${id}-h` }, el("h2", { id: `${id}-h` }, w(id === "headline" ? "ladder" : id)),
    lead ? el("p", { class: "lead" }, lead) : null, ...children);
}

function table(heads, rows, attributes) {
  return el("div", { class: "scroll", tabindex: "0" }, el("table", attributes || {},
    el("thead", {}, el("tr", {}, heads.map((h) => el("th", { scope: "col" }, h)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell)))))));
}

function folded(summary, content, open) {
  return el("details", { open: Boolean(open) }, el("summary", {}, summary), ...[content].flat());
}

function partName() {
  return ["test", "dev", "none"].includes(DATA.part) ? w(`part_${DATA.part}`) : DATA.part;
}

// The place in the page's address keeps language and filter, so that a view can be passed on.
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const languages = navigator.languages && navigator.languages.length ? navigator.languages : [navigator.language || "en"];
  state.lang = given.get("lang") === "zh" || given.get("lang") === "en" ? given.get("lang") : /^zh/i.test(languages[0]) ? "zh" : "en";
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  state.theme = ["dark", "light"].includes(given.get("theme")) ? given.get("theme") : dark ? "dark" : "light";
  for (const name of ["gold", "said"]) {
    const n = Number.parseInt(given.get(name) ?? "-1", 10);
    state[name] = n >= 0 && n < NAMES.length ? n : -1;
  }
  const n = Number.parseInt(given.get("curve") ?? "-1", 10);
  state.curve = DATA.precision && n >= 0 && n < DATA.precision.curves.length ? n : -1;
  for (const [name, known] of [["show", SHOWN], ["sort", SORTED]]) state[name] = given.get(name) in known ? given.get(name) : PLAIN[name];
  state.q = given.get("q") ?? "";
  state.page = Math.max(1, Number.parseInt(given.get("page") ?? "1", 10) || 1);
}

function writeAddress() {
  const kept = new URLSearchParams({ lang: state.lang, theme: state.theme });
  for (const [name, plain] of Object.entries(PLAIN))
    if (state[name] !== plain) kept.set(name, state[name]);
  try { history.replaceState(null, "", `#${kept}`); } catch { /* some viewers have no history */ }
}
