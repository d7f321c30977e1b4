// Puts the page together, and again in another language or theme.
const SECTIONS = [
  ["headline", headlineSection], ["curves", curvesSection], ["classes", classesSection], ["confusion", confusionSection],
  ["precisionRecall", precisionRecallSection],
  ["calibration", calibrationSection], ["risk", riskSection], ["length", lengthSection], ["cost", costSection],
  ["errors", errorsSection], ["issues", issuesSection], ["config", configSection],
];

function again(id, make) {
  const old = document.getElementById(id);
  const made = make();
  if (old && made) old.replaceWith(made);
}

function render() {
  const root = document.documentElement;
  root.lang = state.lang === "zh" ? "zh-CN" : "en";
  root.dataset.theme = state.theme;
  forgetCharts();
  document.getElementById("title").textContent = DATA.title;
  document.getElementById("subtitle").textContent = DATA.metrics ? w("subtitle", { n: whole(DATA.n), part: partName() }) : partName();
  const language = document.getElementById("language");
  language.textContent = state.lang === "zh" ? "English" : "中文";
  language.lang = state.lang === "zh" ? "en" : "zh";
  document.getElementById("theme").textContent = w(state.theme === "dark" ? "lightTheme" : "darkTheme");
  for (const node of document.querySelectorAll("[data-w]")) node.textContent = w(node.dataset.w);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", w(node.dataset.label));
  const made = SECTIONS.map(([id, make]) => [id, make()]).filter(([, node]) => node);
  document.getElementById("main").replaceChildren(...made.map(([, node]) => node));
  // not links: the address holds language and filter
  document.getElementById("nav").replaceChildren(...made.map(([id]) => el("a", { href: `#${id}`, onclick: (event) => {
    event.preventDefault();
    const target = document.getElementById(id);
    target.tabIndex = -1;
    target.focus({ preventScroll: true });
    target.scrollIntoView({ block: "start" });
  } }, w(id))));
  document.getElementById("footer").textContent = w("footer");
  listRows();
  drawCharts();
}

readAddress();
render();
document.getElementById("language").addEventListener("click", () => { state.lang = state.lang === "zh" ? "en" : "zh"; writeAddress(); render(); });
document.getElementById("theme").addEventListener("click", () => { state.theme = state.theme === "dark" ? "light" : "dark"; writeAddress(); render(); });
// an address that was passed on, put into the page that is open
window.addEventListener("hashchange", () => { readAddress(); render(); });
// paper is white
let shownTheme = null;
window.addEventListener("beforeprint", () => { shownTheme = state.theme; document.documentElement.dataset.theme = "light"; drawCharts(); });
window.addEventListener("afterprint", () => { document.documentElement.dataset.theme = shownTheme ?? state.theme; drawCharts(); });
document.documentElement.dataset.ready = "yes";
