// What went wrong, above everything else, in the page's language.
import { askForKey } from "./settings.js";
import { byId, el, onLanguage, w } from "./view.js";

let shown = null;

// problem: a Problem, or the key of words; values go into the words.
export function notice(problem, values) {
  shown = problem ? { problem, values } : null;
  draw();
  if (problem && problem.kind === "key") askForKey();
}

export function noticeBox(problem, values) {
  const plain = typeof problem === "string";
  return [el("p", {}, plain ? w(problem, values) : problem.words),
    !plain && problem.detail ? el("p", { class: "soft small detail" }, w("serverSays"), " ", el("q", { lang: "en" }, problem.detail)) : null];
}

function draw() {
  const box = byId("notice");
  if (!shown) return box.replaceChildren();
  box.replaceChildren(el("div", { class: "note bad" }, noticeBox(shown.problem, shown.values),
    el("button", { type: "button", class: "link", onclick: () => notice(null) }, w("dismiss"))));
}

onLanguage(draw);
