// Words, numbers and elements. What comes from outside (texts, labels, file names, messages) is put in as text only.
import { EN } from "./words.js";
import { ZH } from "./words_zh.js";

const WORDS = { en: EN, zh: ZH };
const MEMORY = "fenlei.page";
export const ui = { lang: "en", theme: "light" };
const redraws = [];

export const byId = (id) => document.getElementById(id);

// w("rows", {n: 3}): the words in the page's language; "rows_one" where there is one and n is 1.
export function w(key, values) {
  const words = WORDS[ui.lang];
  const one = values && (values.n === 1 || values.n === "1") ? words[`${key}_one`] : undefined;
  const text = one ?? words[key] ?? WORDS.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (all, name) => (values && Object.hasOwn(values, name) ? String(values[name]) : all));
}

export const hasWords = (key) => Object.hasOwn(WORDS.en, key);

// el("p", {class: "lead", onclick: f}, "text", child, ...): attributes by name, handlers by on..., no markup.
export function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined && child !== false) node.append(child);
  return node;
}

export const isNumber = (v) => typeof v === "number" && Number.isFinite(v);
const locale = () => (ui.lang === "zh" ? "zh-CN" : "en");
export const whole = (v) => (isNumber(v) ? v.toLocaleString(locale()) : "–");
export const fixed = (v, digits = 2) => (isNumber(v) ? v.toFixed(digits) : "–");
export const characters = (text) => { let n = 0; for (const _ of text) n += 1; return n; };

export function percent(v, digits = 1) {
  if (!isNumber(v)) return "–";
  const step = 10 ** -digits;
  const space = ui.lang === "zh" ? "" : "\u202f";
  if (v < 1 && 100 * v > 100 - step / 2) return `> ${(100 - step).toFixed(digits)}${space}%`;
  if (v > 0 && 100 * v < step / 2) return `< ${step.toFixed(digits)}${space}%`;
  return `${(100 * v).toFixed(digits)}${space}%`;
}

// A threshold for the probability reads as probabilities do; other signals are plain numbers.
export const thresholdText = (v, signal) => (signal === "max_probability" || signal === "label_likelihood" ? percent(v) : fixed(v, 3));

// A change of a probability in percentage points.
export function points(v) {
  if (!isNumber(v)) return "–";
  const n = (100 * v).toFixed(1);
  return Number(n) === 0 ? "0" : `${v > 0 ? "+" : "−"}${n.replace("-", "")}`;
}

export function milliseconds(ms) {
  if (!isNumber(ms)) return "–";
  if (ms < 1000) return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  return w("seconds", { n: (ms / 1000).toLocaleString(locale(), { maximumFractionDigits: 1 }) });
}

export function duration(seconds) {
  const shown = (n) => n.toLocaleString(locale(), { maximumFractionDigits: n < 10 ? 1 : 0 });
  if (seconds < 90) return w("seconds", { n: shown(Math.max(1, Math.round(seconds))) });
  return seconds < 5400 ? w("minutes", { n: shown(seconds / 60) }) : w("hours", { n: shown(seconds / 3600) });
}

export const clock = (at) => new Date(at).toLocaleTimeString(locale(), { hour: "2-digit", minute: "2-digit" });

// What screen readers are told; the same words twice in a row are told twice.
export function say(text) {
  const node = byId("said");
  node.textContent = node.textContent === text ? `${text}\u00a0` : text;
}

// Called now and after each change of language.
export function onLanguage(draw) {
  redraws.push(draw);
}

export function remembered(key, value) {
  try {
    if (value === undefined) return localStorage.getItem(key);
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, value);
    return value;
  } catch {
    return null; // private windows, blocked or full storage: the page works without
  }
}

export function startLanguageAndTheme() {
  let kept = {};
  try { kept = JSON.parse(remembered(MEMORY)) || {}; } catch { /* somebody else's */ }
  const first = (navigator.languages && navigator.languages[0]) || navigator.language || "en";
  ui.lang = Object.hasOwn(WORDS, kept.lang) ? kept.lang : /^zh/i.test(first) ? "zh" : "en";
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => (["dark", "light"].includes(kept.theme) ? kept.theme : system.matches ? "dark" : "light");
  ui.theme = chosen();
  const keep = (more) => { kept = { ...kept, ...more }; remembered(MEMORY, JSON.stringify(kept)); draw(); };
  byId("language").addEventListener("click", () => { ui.lang = ui.lang === "zh" ? "en" : "zh"; keep({ lang: ui.lang }); });
  byId("theme").addEventListener("click", () => { ui.theme = ui.theme === "dark" ? "light" : "dark"; keep({ theme: ui.theme }); });
  system.addEventListener("change", () => { ui.theme = chosen(); draw(); });
  draw();
}

function draw() {
  const root = document.documentElement;
  root.lang = ui.lang === "zh" ? "zh-CN" : "en";
  root.dataset.theme = ui.theme;
  byId("language").textContent = ui.lang === "zh" ? "English" : "中文";
  byId("language").lang = ui.lang === "zh" ? "en" : "zh";
  byId("theme").textContent = w(ui.theme === "dark" ? "lightTheme" : "darkTheme");
  document.title = w("title");
  for (const node of document.querySelectorAll("[data-w]")) node.textContent = w(node.dataset.w);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", w(node.dataset.label));
  for (const node of document.querySelectorAll("[data-place]")) node.setAttribute("placeholder", w(node.dataset.place));
  for (const redraw of redraws) redraw();
}
