// The rows: filtered, searched, ordered and paged over plain columns, so that 10,000 of them stay fast.
const B = DATA.browser;
const PAGE_ROWS = 25;
const SHOWN = {
  wrong: (i) => B.gold[i] !== B.said[i], right: (i) => B.gold[i] === B.said[i], all: () => true,
  abstained: (i) => B.flags[i] & 1, short: (i) => B.flags[i] & 2,
};
const probability = (i) => B.top[i][1];
const SORTED = {
  sure: (a, b) => probability(b) - probability(a) || a - b, unsure: (a, b) => probability(a) - probability(b) || a - b,
  file: (a, b) => a - b, long: (a, b) => B.length[b] - B.length[a] || a - b,
};
let lowered = null;

function matching() {
  const q = state.q.trim().toLowerCase();
  if (q && !lowered) lowered = B.text.map((t, i) => `${t}\n${B.id[i]}\n${B.names[B.gold[i]]}\n${B.names[B.said[i]]}`.toLowerCase());
  const keep = SHOWN[state.show];
  const found = [];
  for (let i = 0; i < B.id.length; i += 1)
    if (keep(i) && (state.gold < 0 || B.gold[i] === state.gold) && (state.said < 0 || B.said[i] === state.said) && (!q || lowered[i].includes(q))) found.push(i);
  return found.sort(SORTED[state.sort]);
}

function errorsSection() {
  if (!B) return null;
  const pick = (label, name, options) => el("label", {}, label, el("select", { "data-filter": name, onchange: (e) => { state[name] = /^-?\d+$/.test(e.target.value) ? Number(e.target.value) : e.target.value; state.page = 1; listRows(); } },
    options.map(([value, text]) => el("option", { value, selected: String(state[name]) === String(value) }, text))));
  const labels = [[-1, w("any")], ...NAMES.map((name, i) => [i, name])];
  let timer = 0;
  const search = el("input", { type: "search", value: state.q, "data-filter": "q", oninput: (e) => { clearTimeout(timer); timer = setTimeout(() => { state.q = e.target.value; state.page = 1; listRows(); }, 120); } });
  const notes = [];
  if (B.limit) notes.push(w("limitNote", { n: whole(B.limit), m: whole(B.limit * 6) }));
  if (B.total > B.id.length) notes.push(w("rowsNote", { n: whole(B.id.length), all: whole(B.total) }));
  return section("errors", w("errorsLead"), notes.length || DATA.predictions ? el("p", { class: "hint" }, notes.join(" "), DATA.predictions ? [" ", w("predictionsAt"), el("code", {}, DATA.predictions)] : null) : null,
    el("div", { class: "tools", role: "search" }, el("label", { class: "search" }, w("search"), search),
      pick(w("show"), "show", Object.keys(SHOWN).map((k) => [k, w(`show_${k}`)])), pick(w("gold"), "gold", labels), pick(w("said"), "said", labels),
      pick(w("sort"), "sort", Object.keys(SORTED).map((k) => [k, w(`sort_${k}`)])),
      el("button", { type: "button", onclick: () => { Object.assign(state, { q: "", gold: -1, said: -1, show: "wrong", sort: "sure", page: 1 }); again("errors", errorsSection); listRows(); } }, w("clear"))),
    el("div", { id: "rows" }));
}

function listRows() {
  const box = document.getElementById("rows");
  if (!box) return;
  const found = matching();
  const pages = Math.max(1, Math.ceil(found.length / PAGE_ROWS));
  state.page = Math.min(Math.max(1, state.page), pages);
  const shown = found.slice((state.page - 1) * PAGE_ROWS, state.page * PAGE_ROWS);
  const pager = (top) => el("div", { class: "pager" }, el("span", { role: top ? "status" : null }, w("found", { n: whole(found.length), all: whole(B.id.length) })),
    pages > 1 ? [el("button", { type: "button", disabled: state.page === 1, onclick: () => turn(-1) }, w("previous")), el("span", {}, w("page", { p: state.page, n: pages })), el("button", { type: "button", disabled: state.page === pages, onclick: () => turn(1) }, w("next"))] : null);
  box.replaceChildren(pager(true), ...(shown.length ? shown.map(rowView) : [el("p", { class: "hint" }, w("nothing"))]), ...(shown.length > 8 && pages > 1 ? [pager(false)] : []));
  for (const cell of document.querySelectorAll("[data-cell]")) cell.setAttribute("aria-pressed", String(cell.dataset.cell === `${state.gold},${state.said}`));
  writeAddress();
}

function turn(by) {
  state.page += by;
  listRows();
  document.getElementById("rows").scrollIntoView({ block: "start" });
}

function rowView(i) {
  const right = B.gold[i] === B.said[i];
  const long = B.text[i].length > 160 || B.text[i].includes("\n");
  const text = el("p", { class: "short" }, marked(long ? B.text[i].slice(0, 600) : B.text[i]));
  const more = el("div", { hidden: true });
  const button = el("button", { type: "button", class: "link", "aria-expanded": "false", onclick: () => {
    const open = more.hidden;
    if (open && !more.childNodes.length) more.append(probabilities(i), ...(B.length[i] > [...B.text[i]].length ? [el("p", { class: "cut" }, w("cutHere", { n: whole([...B.text[i]].length), all: whole(B.length[i]) }))] : []));
    more.hidden = !open;
    text.classList.toggle("short", !open);
    text.replaceChildren(...marked(open ? B.text[i] : B.text[i].slice(0, 600)));
    button.setAttribute("aria-expanded", String(open));
    button.textContent = w(open ? "less" : "more");
  } }, w("more"));
  return el("article", { class: "row" }, el("div", { class: "head" },
    el("span", { class: `tag ${right ? "right" : "said-wrong"}` }, w("saidIs", { l: B.names[B.said[i]] }), ` ${percent(probability(i) / 10000)}`),
    right ? null : el("span", { class: "tag right" }, w("rightIs", { l: B.names[B.gold[i]] })),
    B.flags[i] & 1 ? el("span", { class: "tag" }, w("abstained")) : null, B.flags[i] & 2 ? el("span", { class: "tag" }, w("wasShortened")) : null,
    el("span", { class: "id" }, `${w("id")} ${B.id[i]}`)), text, button, more);
}

function probabilities(i) {
  const box = el("div", { class: "probs" });
  for (let k = 0; k < B.top[i].length; k += 2) {
    const [name, p] = [B.top[i][k], B.top[i][k + 1] / 10000];
    box.append(el("span", { class: `name-of ${name === B.gold[i] ? "good" : ""}` }, B.names[name], name === B.gold[i] ? " ✓" : ""),
      el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: "fill", css: { width: `${100 * p}%` } })), el("span", { class: "p" }, percent(p)));
  }
  return box;
}

function marked(text) {
  const q = state.q.trim();
  if (!q) return [document.createTextNode(text)];
  const [small, wanted, parts] = [text.toLowerCase(), q.toLowerCase(), []];
  if (small.length !== text.length) return [document.createTextNode(text)];
  let from = 0;
  for (let at = small.indexOf(wanted); at >= 0; at = small.indexOf(wanted, from)) {
    parts.push(document.createTextNode(text.slice(from, at)), el("mark", {}, text.slice(at, at + q.length)));
    from = at + q.length;
  }
  parts.push(document.createTextNode(text.slice(from)));
  return parts;
}

function choose(gold, said, show) {
  Object.assign(state, { gold, said, show, q: "", page: 1 });
  again("errors", errorsSection);
  listRows();
  const target = document.getElementById("errors");
  target.scrollIntoView({ block: "start" });
}
