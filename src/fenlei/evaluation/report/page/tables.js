// Headline, ladder, classes, matrix, cost, label errors, configuration.
function tile(what, value, ...more) {
  return el("div", { class: "tile" }, el("div", { class: "what" }, what), el("div", { class: "value" }, value),
    more.filter(Boolean).map((m) => el("div", { class: "more" }, m)));
}

const FIGURES = ["accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "weighted_f1", "mcc", "average_precision", "log_loss", "brier", "ece", "mce", "aurc"];

function headlineSection() {
  const m = DATA.metrics;
  const h = DATA.headline;
  const parts = [];
  if (!m) parts.push(el("p", { class: "note" }, w("noMetrics")));
  else {
    const spread = (key) => (h[key].interval ? w("interval", { low: percent(h[key].interval[0]), high: percent(h[key].interval[1]) }) : null);
    const dev = (key, f) => (DATA.dev ? w("onDev", { v: f(DATA.dev[key]) }) : null);
    const before = m.uncalibrated && m.calibration && m.calibration.method !== "none" ? m.uncalibrated : null;
    const wrong = DATA.n - Math.round(m.accuracy * DATA.n);
    parts.push(el("div", { class: "tiles" },
      tile(w("accuracy"), percent(m.accuracy), spread("accuracy"), dev("accuracy", percent)),
      tile(w("macro_f1"), fixed(m.macro_f1), h.macro_f1.interval ? w("interval", { low: fixed(h.macro_f1.interval[0]), high: fixed(h.macro_f1.interval[1]) }) : null, dev("macro_f1", fixed)),
      tile(w("wrong"), whole(wrong), w("ofRows", { n: whole(DATA.n) })),
      tile(w("ece"), fixed(m.ece), before ? w("before", { v: fixed(before.ece) }) : null),
      tile(w("log_loss"), fixed(m.log_loss), before ? w("before", { v: fixed(before.log_loss) }) : null),
      m.abstain_rate > 0 ? tile(w("abstain_rate"), percent(m.abstain_rate), isNumber(m.answered_accuracy) ? w("answeredAccuracy", { v: percent(m.answered_accuracy) }) : null) : null));
    const sure = m.intervals || {};
    parts.push(folded(w("allFigures"), table([w("metric"), w("value"), "95 %"], FIGURES.filter((k) => isNumber(m[k]))
      .map((k) => [w(k), fixed(m[k], 4), sure[k] ? range(sure[k], (v) => fixed(v, 4)) : ""]))));
    if (DATA.part === "dev") parts.push(el("p", { class: "note unclear", id: "dev-only" }, w("devOnly")));
  }
  const { rungs, comparisons, verdict } = DATA.ladder;
  const value = (key) => percent((rungs.find((r) => r.key === key) || {}).accuracy);
  const p = (v) => (isNumber(v) ? (v < 0.0001 ? "< 0.0001" : fixed(v, 4)) : w("tooFew"));
  const compared = comparisons.length ? folded(w("comparisons"), [el("p", { class: "hint" }, w("comparisonsLead")),
    table([w("between"), w("metric"), w("count"), w("difference"), "95 %", w("pValue")],
      comparisons.map((c) => [`${w(c.first)} → ${w(c.second)}`, w(c.metric), whole(c.rows), fixed(c.difference, 4), range(c.interval, (v) => fixed(v, 4)), p(c.p_value)]))]) : null;
  return el("section", { id: "headline", "aria-labelledby": "headline-h" }, el("h2", { id: "headline-h" }, w("headline")), parts,
    el("h3", {}, w("ladder")), m || rungs.some((r) => isNumber(r.accuracy)) ? [
      el("p", { class: `note ${verdict}` }, w(`verdict_${verdict}`, { tuned: value("tuned"), tfidf: value("tfidf") })),
      el("p", { class: "hint" }, w("ladderLead")), el("div", {}, rungs.map(rungRow)),
      el("div", { class: "axis", "aria-hidden": "true" }, el("div", {}, [0, 25, 50, 75, 100].map((v) => el("span", {}, percent(v / 100, 0)))))] : null, compared);
}

function rungRow(r) {
  const ran = isNumber(r.accuracy);
  const track = ran ? el("div", { class: "track", "aria-hidden": "true" }, el("div", { class: "fill", css: { width: `${100 * r.accuracy}%` } }),
    r.accuracy_interval ? el("div", { class: "whisker", css: { left: `${100 * r.accuracy_interval[0]}%`, width: `${100 * (r.accuracy_interval[1] - r.accuracy_interval[0])}%` } }) : null)
    : el("div", { class: "off" }, w("notRun"));
  const more = [isNumber(r.rows) ? w("rows", { n: whole(r.rows) }) : "", isNumber(r.macro_f1) ? w("f1Short", { v: fixed(r.macro_f1) }) : "", isNumber(r.seconds) ? duration(r.seconds) : "", ...remark(r)].filter(Boolean).join(" · ");
  return el("div", { class: `rung ${r.key === "tuned" ? "tuned" : ""}` }, el("div", { class: "who" }, w(r.key)), track,
    ran ? el("div", { class: "numbers" }, percent(r.accuracy), " ", el("small", {}, range(r.accuracy_interval, (v) => (100 * v).toFixed(1)))) : null,
    more ? el("div", { class: "remark" }, more) : null);
}

let classOrder = ["file", 1];
function classesSection() {
  const m = DATA.metrics;
  if (!m) return null;
  const rows = Object.entries(m.per_class).map(([label, row], i) => ({ label, i, ...row }));
  const [key, way] = classOrder;
  rows.sort((a, b) => (key === "file" ? a.i - b.i : key === "label" ? way * a.label.localeCompare(b.label) : way * (a[key] - b[key])) || a.i - b.i);
  const most = Math.max(1, ...rows.map((r) => r.support));
  const head = (name) => el("th", { scope: "col", "aria-sort": key === name ? (way > 0 ? "ascending" : "descending") : null, class: name === "label" ? "text" : null },
    el("button", { type: "button", onclick: () => { classOrder = [name, key === name ? -way : 1]; again("classes", classesSection); } }, w(name), key === name ? (way > 0 ? " ▲" : " ▼") : ""));
  const bar = (v, share) => el("td", {}, v, el("span", { class: "cellbar", "aria-hidden": "true" }, el("i", { css: { width: `${100 * share}%` } })));
  const names = ["precision", "recall", "f1"];
  return section("classes", w("classesLead"), el("div", { class: "scroll", tabindex: "0" }, el("table", { class: "wide" },
    el("thead", {}, el("tr", {}, ["label", ...names, "support"].map(head))),
    el("tbody", {}, rows.map((r) => el("tr", { class: r.support ? null : "none" },
      el("td", { class: "text" }, DATA.browser ? el("button", { type: "button", class: "link", title: w("showWrong"), onclick: () => choose(NAMES.indexOf(r.label), -1, "wrong") }, r.label) : r.label),
      names.map((n) => bar(fixed(r[n]), r[n])), bar(whole(r.support), r.support / most)))))));
}

const MOST_IN_MATRIX = 40;
function confusionSection() {
  const m = DATA.metrics;
  if (!m) return null;
  const cells = m.confusion; // [right, predicted, count]; all others are 0
  const names = m.labels;
  const errors = names.map(() => 0);
  for (const [i, j, v] of cells) if (i !== j) { errors[i] += v; errors[j] += v; }
  let kept = names.map((_, i) => i);
  const many = names.length > MOST_IN_MATRIX;
  if (many) kept = kept.sort((a, b) => errors[b] - errors[a]).slice(0, MOST_IN_MATRIX).sort((a, b) => a - b);
  const pairs = cells.filter(([i, j]) => i !== j).sort((a, b) => b[2] - a[2]);
  const shown = pairs.slice(0, 10);
  return section("confusion", w("confusionLead"), many ? el("p", { class: "hint" }, w("confusionMany", { n: MOST_IN_MATRIX })) : null,
    matrix(cells, names, kept), shown.length ? [el("h3", {}, w("worstPairs")), el("div", { class: "scroll", tabindex: "0" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", { class: "text" }, w("gold")), el("th", { class: "text" }, w("said")), el("th", {}, w("count")))),
      el("tbody", {}, shown.map(([i, j, v]) => el("tr", {}, el("td", { class: "text" }, names[i]), el("td", { class: "text" }, names[j]),
        el("td", {}, DATA.browser ? el("button", { type: "button", class: "link", onclick: () => choose(i, j, "all") }, whole(v)) : whole(v)))))))] : null);
}

function matrix(cells, names, kept) {
  const totals = names.map(() => 0);
  for (const [i, , v] of cells) totals[i] += v;
  const counts = new Map(cells.map(([i, j, v]) => [`${i},${j}`, v]));
  const longest = Math.min(12, 1.3 + 0.62 * Math.max(...kept.map((i) => [...names[i]].reduce((s, c) => s + (c > "⺀" ? 1.6 : 1), 0))));
  const body = el("tbody", {}, kept.map((i) => {
    return el("tr", {}, el("th", { scope: "row", title: names[i] }, names[i]), kept.map((j) => {
      const v = counts.get(`${i},${j}`);
      if (!v) return el("td", { class: "zero" }, "·");
      const share = v / totals[i];
      const tint = i === j ? "--tint" : null;
      const name = w("cell", { gold: names[i], said: names[j], n: whole(v) });
      const back = tint ? `rgb(var(--tint) / ${0.1 + 0.55 * share})` : `rgb(214 69 50 / ${Math.min(0.75, 0.14 + 1.1 * share)})`;
      return el("td", { css: { background: back, "border-radius": "4px" } }, el("button", { type: "button", tabindex: "-1", title: name, "aria-label": name, "data-cell": `${i},${j}`,
        "aria-pressed": String(state.gold === i && state.said === j), disabled: !DATA.browser,
        onclick: () => (state.gold === i && state.said === j ? choose(-1, -1, "wrong") : choose(i, j, "all")) }, whole(v)));
    }));
  }));
  const buttons = [...body.querySelectorAll("button")];
  if (buttons.length) buttons[0].tabIndex = 0;
  body.addEventListener("keydown", (event) => moveInMatrix(event, body));
  return el("div", { class: "scroll", tabindex: "-1" }, el("table", { class: `matrix ${kept.length > 14 ? "many" : ""}`, css: { "--head": `${longest}rem` } },
    el("thead", {}, el("tr", {}, el("td", {}, el("span", { class: "hint" }, `${w("gold")} ↓ ${w("said")} →`)), kept.map((j) => el("th", { scope: "col", title: names[j] }, el("span", {}, names[j]))))), body));
}

function moveInMatrix(event, body) {
  const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
  const from = event.target.closest("td");
  if (!step || !from) return;
  event.preventDefault();
  const rows = [...body.rows];
  let [r, c] = [rows.indexOf(from.parentNode) + step[0], from.cellIndex + step[1]];
  while (rows[r] && c > 0 && rows[r].cells[c]) {
    const button = rows[r].cells[c].querySelector("button");
    if (button) {
      for (const other of body.querySelectorAll("button")) other.tabIndex = -1;
      button.tabIndex = 0;
      button.focus();
      return;
    }
    r += step[0];
    c += step[1];
  }
}

function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.filter(([, v]) => v !== null && v !== undefined && v !== "–" && v !== "").map(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]));
}

function costSection() {
  const c = DATA.cost;
  const speed = (c && c.texts_per_second) || (DATA.metrics && DATA.metrics.texts_per_second) || null;
  if (!c && !speed) return null;
  if (state.price === null && c && isNumber(c.hourly_price)) state.price = c.hourly_price;
  const unit = (c && c.currency) || "";
  const money = (v) => `${v.toLocaleString(locale(), { maximumFractionDigits: 2 })} ${unit}`.trim();
  const pace = speed ? speed.toLocaleString(locale(), { maximumFractionDigits: speed < 10 ? 2 : 0 }) : "";
  const [line, assumed] = [el("p", { role: "status" }), el("p", { class: "hint" })];
  const say = () => {
    const hours = duration(1e6 / speed);
    const priced = isNumber(state.price) && state.price >= 0;
    line.textContent = priced ? w("perMillion", { hours, price: money((state.price / 3600 / speed) * 1e6) }) : w("perMillionHours", { hours });
    assumed.textContent = priced ? w("priceAssumed", { hourly: money(state.price), n: pace }) : "";
  };
  const input = el("input", { type: "number", min: "0", step: "any", inputmode: "decimal", id: "price", value: state.price ?? "", oninput: (e) => { state.price = e.target.value === "" ? null : Number(e.target.value); say(); } });
  if (speed) say();
  const v = c || {};
  return section("cost", w("costLead"), facts([
    [w(v.resumed ? "trainTimeResumed" : "trainTime"), duration(v.train_seconds)], [w("steps"), whole(v.steps)], [w("trainRows"), whole(v.train_rows)],
    [w("trainTokens"), whole(v.train_tokens)], [w("memory"), bytes(v.peak_memory_bytes)], [w("gpuMemory"), bytes(v.peak_gpu_bytes)], [w("device"), isNumber(v.threads) ? w("cpuThreads", { kind: v.processor, n: whole(v.threads) }) : v.device],
    [w("speed"), speed ? w("speedIs", { n: pace }) : null],
    [w("tokensPerText"), isNumber(v.tokens_per_text) ? w("tokensIs", { n: whole(Math.round(v.tokens_per_text)) }) : null]]),
    speed ? el("div", { class: "price" }, el("label", { for: "price" }, w("hourly")), input, el("span", { class: "hint" }, unit || w("ownUnit"))) : null, speed ? [line, assumed] : null);
}

function issuesSection() {
  const found = DATA.label_issues;
  if (found === null || found === undefined) return section("issues", null, el("p", { class: "hint" }, w("issuesNone")));
  if (!found.length) return section("issues", null, el("p", { class: "hint" }, w("issuesZero")));
  const part = (r) => (["train", "test", "dev"].includes(r.part) ? w(`part_${r.part}`) : r.part);
  const view = (r) => el("article", { class: "row" }, el("div", { class: "head" },
    el("span", { class: "tag said-wrong" }, `${w("given")}: ${r.given}`), el("span", { class: "tag right" }, `${w("suggested")}: ${r.suggested}`),
    el("span", { class: "id" }, `${w("score")} ${fixed(r.score)} · ${part(r)} · ${w("id")} ${r.id}`)), foldable(r.text));
  const first = 10;
  return section("issues", w("issuesLead"), found.slice(0, first).map(view),
    found.length > first ? folded(w("moreIssues", { n: whole(found.length - first) }), found.slice(first).map(view)) : null);
}

// A text of which three lines are shown until it is asked for.
function foldable(text) {
  const shown = el("p", { class: "short" }, text);
  if (text.length <= 160 && !text.includes("\n")) return shown;
  const button = el("button", { type: "button", class: "link", "aria-expanded": "false", onclick: () => {
    const open = shown.classList.toggle("short");
    button.textContent = w(open ? "wholeText" : "less");
    button.setAttribute("aria-expanded", String(!open));
  } }, w("wholeText"));
  return [shown, button];
}

function configSection() {
  const base = DATA.base_model || {};
  const shown = (v) => (typeof v === "object" && v !== null ? JSON.stringify(v) : String(v));
  return section("config", null,
    Object.keys(base).length ? [el("h3", {}, w("baseModel")), facts(Object.entries(base).map(([k, v]) => [`base_${k}` in WORDS.en ? w(`base_${k}`) : k, v === null ? null : shown(v)]))] : null,
    Object.keys(DATA.versions || {}).length ? [el("h3", {}, w("versions")), facts(Object.entries(DATA.versions))] : null,
    DATA.config ? folded(w("settings"), el("pre", { tabindex: "0" }, settingsText(DATA.config, ""))) : el("p", { class: "hint" }, w("noConfig")));
}

function settingsText(value, indent) {
  return Object.entries(value).map(([k, v]) => (v && typeof v === "object" && !Array.isArray(v) && Object.keys(v).length
    ? `${indent}${k}:\n${settingsText(v, `${indent}  `)}` : `${indent}${k}: ${typeof v === "string" ? v : JSON.stringify(v)}`)).join("\n");
}
