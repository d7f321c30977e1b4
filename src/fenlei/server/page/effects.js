// What each sentence does to the label: coloured text, and the same as a table.
import { el, isNumber, percent, points, w } from "./view.js";

// The classifier is asked again without the sentence; what the label's probability loses by that speaks for the label.
const effectOf = (sentence) => -sentence.change;
const FAINTEST = 0.1;
const NOTHING = 0.0005;

export function effectsView(result) {
  const { sentences, runner_up: runnerUp, grouped } = result.explanation;
  const effects = sentences.map(effectOf);
  const most = Math.max(FAINTEST, ...effects.map(Math.abs));
  const text = el("p", { class: "effects" }, sentences.map((s, i) => {
    const side = s.read === "none" ? "unread" : Math.abs(effects[i]) < NOTHING ? "neither" : effects[i] > 0 ? "for" : "against";
    return el("span", { class: side, title: title(s, effects[i], result), css: { "--strength": (Math.abs(effects[i]) / most).toFixed(3) } }, s.text);
  }));
  const key = ["for", "against", ...(sentences.some((s) => s.read === "none") ? ["unread"] : [])];
  return el("section", { class: "effect-box", "aria-label": w("effects") },
    el("h3", {}, w("effects")),
    el("p", { class: "soft small" }, w("effectsLead", { label: result.label }), grouped ? ` ${w("effectsGrouped")}` : ""),
    text,
    el("p", { class: "key small soft", "aria-hidden": "true" }, key.map((side) => el("span", {}, el("span", { class: `swatch ${side}` }), w(`effect_${side}`, { label: result.label })))),
    el("details", {}, el("summary", {}, w("asTable")), effectsTable(result, effects, runnerUp)));
}

function title(sentence, effect, result) {
  if (sentence.read === "none") return w("effect_unread");
  const values = { e: points(effect), label: result.label, p: percent(result.probability), q: percent(result.probability - effect) };
  return w("effectTitle", values) + (sentence.read === "part" ? ` (${w("readPart")})` : "");
}

function effectsTable(result, effects, runnerUp) {
  const heads = [w("sentence"), w("effectOn", { label: result.label }), ...(runnerUp ? [w("effectOn", { label: runnerUp })] : []), w("without")];
  const rows = result.explanation.sentences.map((s, i) => {
    const unread = s.read === "none";
    const note = unread ? ` (${w("effect_unread")})` : s.read === "part" ? ` (${w("readPart")})` : "";
    return el("tr", {}, el("th", { scope: "row" }, s.text.trim(), note ? el("span", { class: "soft" }, note) : null), el("td", {}, unread ? "–" : points(effects[i])),
      runnerUp ? el("td", {}, unread || !isNumber(s.runner_up_change) ? "–" : points(-s.runner_up_change)) : null,
      el("td", { class: s.label !== result.label ? "turned" : null }, s.label ?? ""));
  });
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": w("effects") }, el("table", { class: "effect-table" }, el("caption", { class: "sr" }, w("effectsCaption")),
    el("thead", {}, el("tr", {}, heads.map((h) => el("th", { scope: "col" }, h)))), el("tbody", {}, rows)));
}
