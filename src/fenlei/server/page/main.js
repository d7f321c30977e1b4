// Puts the page together: tabs, language, classifiers.
import { patience, Problem, sleep } from "./api.js";
import { openLines, startFile } from "./file.js";
import { startHistory } from "./history.js";
import { notice } from "./notice.js";
import { loadModels, startSettings } from "./settings.js";
import { showAgain, startTexts } from "./texts.js";
import { byId, startLanguageAndTheme } from "./view.js";

const TABS = ["texts", "file", "history"];
let connection = null;

function choose(name, focus = false) {
  for (const tab of TABS) {
    const button = byId(`tab-${tab}`);
    button.setAttribute("aria-selected", String(tab === name));
    button.tabIndex = tab === name ? 0 : -1;
    byId(tab).hidden = tab !== name;
  }
  if (focus) byId(`tab-${name}`).focus();
}

function startTabs() {
  TABS.forEach((name, i) => {
    const button = byId(`tab-${name}`);
    button.addEventListener("click", () => choose(name));
    button.addEventListener("keydown", (event) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: TABS.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose(TABS[(to + TABS.length) % TABS.length], true);
    });
  });
}

// Asks for the classifiers until the server has them: it answers while it still loads them.
async function connect() {
  const mine = (connection = new AbortController());
  for (let attempt = 0; connection === mine; attempt += 1) {
    try {
      await loadModels();
      notice(null);
      break;
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      notice(problem);
      const wait = patience(problem, attempt);
      if (wait === null) break;
      await sleep(wait, mine.signal);
    }
  }
  document.documentElement.dataset.ready = "yes";
}

startTabs();
startSettings({ onKey: () => { connection?.abort(); return connect(); } });
startTexts((texts) => { choose("file"); openLines(texts); });
startFile(() => choose("file"));
startHistory((entry) => { choose("texts"); showAgain(entry); byId("text").focus(); });
startLanguageAndTheme();
connect();
