// One answer: its label in large, bars, what is to be said about it; and many answers as a list.
import { effectsView } from "./effects.js";
import { characters, el, isNumber, milliseconds, percent, say, thresholdText, w, whole } from "./view.js";

const FIRST_BARS = 5;

// The labels and probabilities of a result, from high to low.
export const pairsOf = (result) => Object.entries(result.probabilities || {}).sort((a, b) => b[1] - a[1]);

export function bars(pairs, { threshold = null, abstained = false, first = FIRST_BARS } = {}) {
  const list = el("ol", { class: `bars${abstained ? " abstained" : ""}` });
  const add = (from, to) => list.append(...pairs.slice(from, to).map(([name, p], i) => el("li", { class: from + i === 0 ? "best" : null },
    el("span", { class: "of" }, name),
    el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: "fill", css: { width: `${100 * p}%` } }),
      isNumber(threshold) && threshold > 0 && threshold <= 1 ? el("span", { class: "tick", css: { left: `${100 * threshold}%` } }) : null),
    el("span", { class: "p" }, percent(p)))));
  add(0, first);
  if (pairs.length <= first) return [list];
  const button = el("button", { type: "button", class: "link", "aria-expanded": "false", onclick: () => {
    const open = button.getAttribute("aria-expanded") === "true";
    if (open) while (list.children.length > first) list.lastChild.remove(); else add(first, pairs.length);
    button.setAttribute("aria-expanded", String(!open));
    button.textContent = open ? w("barsAll", { n: whole(pairs.length) }) : w("barsFew", { n: whole(first) });
  } }, w("barsAll", { n: whole(pairs.length) }));
  return [list, button];
}

// Why there is no answer, in words.
export function declined(result, rule) {
  if (!result.abstained) return null;
  const confidence = isNumber(result.confidence) ? result.confidence : result.probability;
  const values = { c: thresholdText(confidence, rule.signal), t: thresholdText(rule.threshold, rule.signal), label: result.label, p: percent(result.probability) };
  return el("p", { class: "why" }, isNumber(rule.threshold) ? w(rule.signal === "max_probability" ? "declined" : "declinedBy", { ...values, signal: w(`signal_${rule.signal}`) }) : w("declinedPlain", values));
}

export const cutTag = (result) => (result.truncated ? el("span", { class: "tag warn", title: w("cutTitle") }, w("cut")) : null);

// explain: a function that resolves to the same result with its explanation, or null where it is there already.
export function answerView(result, { rule, explain, large = true }) {
  const pairs = pairsOf(result);
  const box = el("div", { class: `answer${result.abstained ? " abstained" : ""}${large ? "" : " inner"}` });
  if (large) {
    const said = result.abstained ? w("noAnswer") : result.label;
    box.append(el("div", { class: "headline" }, el("p", { class: `said${characters(said) > 18 ? " long" : ""}` }, said),
      result.abstained ? null : el("p", { class: "sure" }, percent(result.probability))));
  }
  if (result.truncated) box.append(el("p", { class: "note warn" }, el("strong", {}, w("cut")), " ", w("cutTitle")));
  const why = declined(result, rule);
  if (why) box.append(why);
  const ticked = rule.signal === "max_probability" ? rule.threshold : null;
  box.append(el("div", { class: "probabilities", role: "group", "aria-label": w("probabilities") }, ...bars(pairs, { threshold: ticked, abstained: result.abstained })));
  if (isNumber(ticked) && ticked > 0) box.append(el("p", { class: "soft small legend" }, el("span", { class: "tick-key", "aria-hidden": "true" }), w("tickLegend", { t: percent(ticked) })));
  box.append(effectsPlace(result, explain));
  return box;
}

function effectsPlace(result, explain) {
  const place = el("div", { class: "effects-place" });
  if (result.explanation) {
    place.append(effectsView(result));
  } else if (explain) {
    const button = el("button", { type: "button", class: "link", onclick: async () => {
      button.disabled = true;
      button.textContent = w("working");
      const found = await explain();
      if (found && found.explanation) {
        place.replaceChildren(effectsView(found));
        say(w("effectsReady"));
      } else {
        button.disabled = false;
        button.textContent = w("explainThis");
      }
    } }, w("explainThis"));
    place.append(button);
  }
  return place;
}

// Answers of several texts: a line each, opened one by one.
export function answersList(texts, results, { rule, explain }) {
  const declinedCount = results.filter((r) => r.abstained).length;
  const cutCount = results.filter((r) => r.truncated).length;
  const line = [w("textsCount", { n: whole(results.length) }), declinedCount ? w("declinedCount", { n: whole(declinedCount) }) : null, cutCount ? w("cutCount", { n: whole(cutCount) }) : null];
  return [el("p", { class: "soft" }, line.filter(Boolean).join(" · ")), el("ul", { class: "answers" }, results.map((result, i) => answerRow(texts[i], result, { rule, explain: () => explain(texts[i]) })))];
}

function answerRow(text, result, { rule, explain }) {
  const more = el("div", { class: "more", hidden: true });
  const row = el("li", { class: result.abstained ? "abstained" : null });
  const clipped = el("span", { class: "text" }, text.slice(0, 300));
  const button = el("button", { type: "button", class: "open", "aria-expanded": "false", onclick: () => {
    const open = more.hidden;
    if (open && !more.childNodes.length) more.append(el("p", { class: "whole" }, text), answerView(result, { rule, explain, large: false }));
    more.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
  } }, el("span", { class: "said" }, result.abstained ? w("noAnswer") : result.label),
  el("span", { class: "mini", "aria-hidden": "true" }, el("span", { class: "fill", css: { width: `${100 * result.probability}%` } })),
  el("span", { class: "p" }, percent(result.probability)), el("span", { class: "tags" }, result.truncated ? el("span", { class: "tag warn" }, w("cutShort")) : null), clipped);
  row.append(button, more);
  return row;
}

// How long it took: on the server, and here.
export function timingLine({ timings = {}, usage = {}, here = null, requests = 1 }) {
  const parts = [];
  if (isNumber(timings.score_ms)) parts.push(w("timeScored", { t: milliseconds(timings.score_ms) }));
  if (isNumber(timings.queue_ms)) parts.push(w("timeQueued", { t: milliseconds(timings.queue_ms) }));
  if (isNumber(here)) parts.push(w("timeHere", { t: milliseconds(here) }));
  if (isNumber(usage.tokens)) parts.push(w("tokens", { n: whole(usage.tokens) }));
  if (requests > 1) parts.push(w("requests", { n: whole(requests) }));
  return el("p", { class: "timing soft small" }, parts.join(" · "));
}
