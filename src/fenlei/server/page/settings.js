// Which classifier is asked, among which labels, when it may decline, and with which key.
import { models as fetchModels } from "./api.js";
import { byId, el, isNumber, onLanguage, thresholdText, w, whole } from "./view.js";

const MOST_SHOWN = 200;
// What a confidence can be, by signal: lowest, highest, step, and what they are multiplied by to be shown. The likelihood
// of an answer has no lower end.
const RANGES = { max_probability: [0, 100, 1, 100], entropy: [-1, 0, 0.01, 1], answer_likelihood: [-20, 0, 0.1, 1],
  label_likelihood: [0, 100, 1, 100] };
const ALWAYS = 1; // a threshold above every confidence: no row is answered
const WIDE = window.matchMedia("(min-width: 900px)");
export const settings = { models: [], model: null, chosen: new Set(), abstain: "own", below: 0.5, key: "" };

export const current = () => settings.models.find((m) => m.id === settings.model) || null;
const known = () => current()?.labels || [];

// What every request says besides its texts.
export function requestBase() {
  const body = {};
  if (settings.model !== null) body.model = settings.model;
  if (settings.chosen.size) body.candidates = known().filter((name) => settings.chosen.has(name));
  if (settings.abstain === "never") body.threshold = null;
  if (settings.abstain === "below") body.threshold = settings.below;
  return body;
}

// The threshold that a request with this body is answered under, and the signal it is for.
export function ruleOf(body) {
  const model = settings.models.find((m) => m.id === body.model) || current() || {};
  const own = isNumber(model.threshold) ? model.threshold : null;
  return { threshold: Object.hasOwn(body, "threshold") ? body.threshold : own, signal: model.signal || "max_probability" };
}

// Fills the list of classifiers; the one in use stays in use while it is served.
export async function loadModels() {
  const found = await fetchModels(settings.key);
  settings.models = Array.isArray(found?.data) ? found.data : [];
  if (!settings.models.some((m) => m.id === settings.model)) settings.model = settings.models[0]?.id ?? null;
  dropUnknown();
  drawSettings();
}

export function askForKey() {
  byId("settings-fold").open = true;
  byId("key-fold").open = true;
  byId("key").focus();
}

export function startSettings({ onKey }) {
  byId("settings-fold").open = WIDE.matches;
  WIDE.addEventListener("change", () => { byId("settings-fold").open = WIDE.matches; });
  byId("model").addEventListener("change", (event) => { settings.model = event.target.value; dropUnknown(); byId("candidates-search").value = ""; drawSettings(); });
  for (const radio of document.querySelectorAll("input[name=abstain]")) radio.addEventListener("change", () => { settings.abstain = radio.value; drawAbstain(); drawLine(); });
  byId("below-range").addEventListener("input", (event) => setBelow(event.target.value, "below"));
  byId("below").addEventListener("input", (event) => setBelow(event.target.value, "below-range"));
  byId("below").addEventListener("change", drawAbstain);
  byId("candidates-search").addEventListener("input", drawCandidates);
  byId("candidates-all").addEventListener("click", () => { settings.chosen.clear(); drawCandidates(); drawLine(); byId("candidates-fold").querySelector("summary").focus(); });
  byId("key-form").addEventListener("submit", (event) => { event.preventDefault(); settings.key = byId("key").value.trim(); drawKey(); onKey(); });
  onLanguage(drawSettings);
}

const signalNow = () => (Object.hasOwn(RANGES, current()?.signal ?? "") ? current().signal : "max_probability");
const rangeNow = () => RANGES[signalNow()];

function setBelow(value, other) {
  const n = Number(value);
  const [low, high, , scale] = rangeNow();
  if (value === "" || !(n >= low && n <= high)) return;
  settings.below = n / scale;
  byId(other).value = value;
  drawLine();
}

function dropUnknown() {
  const names = new Set(known());
  for (const name of settings.chosen) if (!names.has(name)) settings.chosen.delete(name);
}

function drawSettings() {
  const select = byId("model");
  select.replaceChildren(...settings.models.map((m) => el("option", { value: m.id }, m.id)));
  select.disabled = settings.models.length === 0;
  if (settings.model !== null) select.value = settings.model;
  const model = current();
  byId("model-facts").replaceChildren(...(model ? [el("span", {}, w("labelsCount", { n: whole(known().length) })), ...(model.base_model ? [el("span", {}, w("on", { model: model.base_model }))] : [])] : []));
  drawAbstain();
  drawCandidates();
  drawKey();
  drawLine();
}

function drawAbstain() {
  const own = current()?.threshold;
  byId("own-line").textContent = !isNumber(own) ? w("abstainOwnNever") : own > ALWAYS ? w("abstainOwnAlways") : w("abstainOwn", { t: thresholdText(own, signalNow()) });
  byId("below-row").hidden = settings.abstain !== "below";
  const [low, high, step, scale] = rangeNow();
  if (settings.below * scale < low || settings.below * scale > high) settings.below = (low + high) / 2 / scale;
  for (const id of ["below-range", "below"]) {
    Object.assign(byId(id), { min: low, max: high, step: id === "below" ? "any" : step });
    byId(id).value = Number((settings.below * scale).toFixed(6));
  }
  byId("below-unit").hidden = scale === 1;
}

function drawKey() {
  byId("key-line").textContent = settings.key ? w("keySet") : w("keyNone");
}

function candidatesWords() {
  const all = known().length;
  return settings.chosen.size ? w("candidatesSome", { n: whole(settings.chosen.size), all: whole(all) }) : w("candidatesEvery", { n: whole(all) });
}

function drawLine() {
  byId("candidates-line").textContent = candidatesWords();
  byId("candidates-all").hidden = settings.chosen.size === 0;
  const rule = settings.abstain === "never" ? w("abstainNever") : settings.abstain === "below" ? w("belowShort", { t: thresholdText(settings.below, signalNow()) }) : null;
  byId("settings-line").textContent = [settings.model, settings.chosen.size ? candidatesWords() : null, rule].filter(Boolean).join(" · ");
  byId("serving").textContent = settings.model ?? "";
}

function drawCandidates() {
  const names = known();
  const search = byId("candidates-search");
  search.hidden = names.length <= 12;
  const wanted = search.hidden ? "" : search.value.trim().toLowerCase();
  const found = names.filter((name) => !wanted || name.toLowerCase().includes(wanted));
  const box = byId("candidates");
  box.replaceChildren(...found.slice(0, MOST_SHOWN).map((name) => el("label", { class: "choice" },
    el("input", { type: "checkbox", checked: settings.chosen.has(name), onchange: (event) => {
      if (event.target.checked) settings.chosen.add(name); else settings.chosen.delete(name);
      drawLine();
    } }), el("span", {}, name))));
  if (found.length > MOST_SHOWN) box.append(el("p", { class: "soft small" }, w("candidatesMore", { n: whole(found.length - MOST_SHOWN) })));
  if (!found.length && names.length) box.append(el("p", { class: "soft small" }, w("nothing")));
  byId("candidates-fold").hidden = names.length === 0;
}
