// One text or several, a line each: asked, shown, shown again from the history.
import { classify, patience, Problem, sleep } from "./api.js";
import { codeButtons } from "./code.js";
import { remember } from "./history.js";
import { notice } from "./notice.js";
import { answersList, answerView, timingLine } from "./result.js";
import { requestBase, ruleOf, settings } from "./settings.js";
import { byId, characters, el, onLanguage, percent, say, w, whole } from "./view.js";

// More lines than this are a table: they are asked in pieces and can be filtered and saved.
const MOST_LINES = 50;
let running = null;
let shown = null;
let openTable = () => {};

const perLine = () => byId("lines").checked;
const lineTexts = () => byId("text").value.split("\n").map((line) => line.replace(/\r$/, "")).filter((line) => line.trim());
const texts = () => (perLine() ? lineTexts() : byId("text").value.trim() ? [byId("text").value] : []);

export function startTexts(onManyLines) {
  openTable = onManyLines;
  byId("composer").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  byId("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing) { event.preventDefault(); submit(); }
  });
  byId("text").addEventListener("input", drawSize);
  byId("lines").addEventListener("change", drawSize);
  byId("text-clear").addEventListener("click", () => { byId("text").value = ""; drawSize(); show(null); notice(null); byId("text").focus(); });
  byId("text-stop").addEventListener("click", () => running?.abort());
  onLanguage(() => { drawSize(); drawResult(); });
}

function drawSize() {
  const found = texts();
  const many = perLine() && found.length > MOST_LINES;
  byId("text-size").textContent = perLine() ? w("linesSize", { n: whole(found.length) }) + (many ? ` · ${w("manyLines")}` : "")
    : w("textSize", { n: whole(characters(byId("text").value)) });
  byId("explain").disabled = perLine();
  byId("explain-choice").title = perLine() ? w("explainOne") : "";
}

async function submit() {
  if (running) return;
  const asked = texts();
  notice(null);
  if (!asked.length) {
    notice("noText");
    byId("text").focus();
    return;
  }
  if (perLine() && asked.length > MOST_LINES) return openTable(asked);
  const body = { ...(perLine() ? { texts: asked } : { text: asked[0] }), ...requestBase() };
  if (!perLine() && byId("explain").checked) body.explain = true;
  running = new AbortController();
  busy(true);
  try {
    const start = performance.now();
    const answer = await ask(body, running.signal);
    show({ texts: asked, body, many: perLine(), results: answer.results, usage: answer.usage, timings: answer.timings, here: performance.now() - start, rule: ruleOf(body), at: Date.now() });
    remember(shown);
    announce(shown);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    if (problem.kind === "large" && asked.length > 1) return openTable(asked);
    notice(problem.kind === "cancelled" ? "cancelled" : problem);
  } finally {
    running = null;
    busy(false);
  }
}

// Asks until there is an answer: a server that is busy says when to come again.
async function ask(body, signal) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      const answer = await classify(body, settings.key, signal);
      notice(null);
      const wanted = body.texts ? body.texts.length : 1;
      if (!Array.isArray(answer?.results) || answer.results.length !== wanted) throw new Problem("odd");
      return answer;
    } catch (problem) {
      const wait = problem instanceof Problem ? patience(problem, attempt) : null;
      if (wait === null) throw problem;
      notice(problem.kind === "busy" ? "busyWait" : "againWait", { n: Math.ceil(wait) });
      await sleep(wait, signal);
      if (signal.aborted) throw new Problem("cancelled");
    }
  }
}

// The same text again, with the effects of its sentences; null when that failed, which is said.
async function explained(body, text) {
  const again = { ...body, text, explain: true };
  delete again.texts;
  try {
    return (await ask(again, new AbortController().signal)).results[0];
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    notice(problem);
    return null;
  }
}

function busy(on) {
  byId("result").setAttribute("aria-busy", String(on));
  byId("classify").disabled = on;
  byId("classify").classList.toggle("busy", on);
  byId("text-stop").hidden = !on;
  byId("text-clear").hidden = on;
  if (on) say(w("working"));
}

function announce({ results }) {
  const [first] = results;
  if (results.length > 1) say(w("readyMany", { n: whole(results.length) }));
  else say(first.abstained ? `${w("noAnswer")}. ${w("mostProbable", { label: first.label, p: percent(first.probability) })}` : `${first.label}, ${percent(first.probability)}`);
}

function show(next) {
  shown = next;
  drawResult();
}

// An entry of the history, with its text in the box again.
export function showAgain(entry) {
  byId("lines").checked = entry.many;
  byId("text").value = entry.texts.join("\n");
  drawSize();
  show(entry);
}

function drawResult() {
  const box = byId("result");
  if (!shown) return box.replaceChildren();
  const { body, results, rule } = shown;
  const explain = async (text) => {
    const found = await explained(body, text);
    if (found && !shown.many) shown.results = [found];
    return found;
  };
  const inner = shown.many ? answersList(shown.texts, results, { rule, explain })
    : answerView(results[0], { rule, explain: () => explain(shown.texts[0]) });
  box.replaceChildren(el("div", { class: "card result" }, el("h2", { class: "sr" }, w("result")), inner, timingLine(shown), el("div", { class: "foot" }, codeButtons(body, Boolean(settings.key)))));
}
