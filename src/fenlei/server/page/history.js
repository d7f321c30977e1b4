// What was asked in this page: in memory, and in the browser's storage only where the user ticked that.
import { byId, clock, el, onLanguage, percent, remembered, w, whole } from "./view.js";

const PLACE = "fenlei.history";
const MOST = 200;
const MOST_STORED = 1_000_000;
let entries = [];
let open = () => {};

export function startHistory(onOpen) {
  open = onOpen;
  entries = stored();
  byId("history-keep").checked = remembered(PLACE) !== null;
  byId("history-keep").addEventListener("change", store);
  byId("history-clear").addEventListener("click", () => { entries = []; store(); draw(); });
  onLanguage(draw);
}

export function remember(entry) {
  entries.unshift(entry);
  entries.length = Math.min(entries.length, MOST);
  store();
  draw();
}

function stored() {
  try {
    const found = JSON.parse(remembered(PLACE));
    return Array.isArray(found) ? found.filter(fits).slice(0, MOST) : [];
  } catch {
    return [];
  }
}

const fits = (e) => e && typeof e === "object" && Array.isArray(e.texts) && Array.isArray(e.results) && e.texts.length > 0
  && e.texts.length === e.results.length && e.body && e.rule && e.texts.every((t) => typeof t === "string")
  && e.results.every((r) => r && typeof r.label === "string" && typeof r.probability === "number" && r.probabilities
    && (!r.explanation || Array.isArray(r.explanation.sentences)));

// The newest entries that fit; none at all where the box is not ticked.
function store() {
  if (!byId("history-keep").checked) return remembered(PLACE, null);
  const kept = [];
  let size = 2;
  for (const entry of entries) {
    const text = JSON.stringify(entry);
    if (size + text.length > MOST_STORED) break;
    size += text.length + 1;
    kept.push(text);
  }
  return remembered(PLACE, `[${kept.join(",")}]`);
}

function draw() {
  const count = byId("history-count");
  count.hidden = entries.length === 0;
  count.textContent = whole(entries.length);
  byId("history-clear").hidden = entries.length === 0;
  byId("history-list").replaceChildren(entries.length ? el("ul", { class: "answers" }, entries.map(row)) : el("p", { class: "soft empty" }, w("historyNone")));
}

function row(entry) {
  const [first] = entry.results;
  const many = entry.results.length > 1;
  return el("li", { class: !many && first.abstained ? "abstained" : null }, el("button", { type: "button", class: "open", onclick: () => open(entry) },
    el("span", { class: "said" }, many ? w("textsCount", { n: whole(entry.results.length) }) : first.abstained ? w("noAnswer") : first.label),
    many ? el("span", { class: "mini none" }) : el("span", { class: "mini", "aria-hidden": "true" }, el("span", { class: "fill", css: { width: `${100 * first.probability}%` } })),
    el("span", { class: "p" }, many ? "" : percent(first.probability)),
    el("span", { class: "tags soft small" }, clock(entry.at), entry.body.model ? ` · ${entry.body.model}` : ""),
    el("span", { class: "text" }, entry.texts.join(" ⏎ ").slice(0, 300))));
}
