// The server's two routes that the page uses, and its errors as kinds that the page has words for.
import { hasWords, w } from "./view.js";

// What is wrong: `kind` decides what the page does, `code` and `status` which words it uses.
export class Problem extends Error {
  constructor(kind, { status = 0, code = "", param = null, message = "", retryAfter = null } = {}) {
    super(message || kind);
    Object.assign(this, { kind, status, code: String(code || ""), param, detail: message, retryAfter });
  }

  // In the page's language; the server's own words, which are English, stand beside it.
  get words() {
    if (this.code && hasWords(`error_${this.code}`)) return w(`error_${this.code}`);
    return w(`error_${this.kind}`, { status: this.status });
  }
}

const KINDS = { 400: "bad", 401: "key", 403: "forbidden", 404: "missing", 408: "slow", 409: "bad", 413: "large", 415: "bad", 422: "bad", 429: "busy", 503: "away", 504: "slow" };

// where the status alone says too little
const KINDS_BY_CODE = { too_many_texts: "large", model_failed: "server", host_not_allowed: "forbidden" };

async function request(path, { body, key, signal }) {
  const headers = { Accept: "application/json" };
  if (body) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body ? JSON.stringify(body) : undefined, signal, cache: "no-store", credentials: "same-origin", redirect: "error" });
  } catch (error) {
    throw problemOf(error);
  }
  let found = null;
  try {
    found = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw problemOf(error);
    if (answer.ok) throw new Problem("odd", { status: answer.status });
  }
  if (answer.ok) return found;
  const error = (found && found.error) || {};
  const kind = KINDS_BY_CODE[error.code] || KINDS[answer.status] || (answer.status >= 500 ? "server" : "bad");
  throw new Problem(kind, { status: answer.status, code: error.code, param: error.param, message: typeof error.message === "string" ? error.message : "", retryAfter: seconds(answer.headers.get("Retry-After")) });
}

function problemOf(error) {
  return new Problem(error.name === "AbortError" ? "cancelled" : "network", { message: "" });
}

// Retry-After is a number of seconds or a date.
export function seconds(header, now = Date.now()) {
  if (!header) return null;
  if (/^\s*\d+(\.\d+)?\s*$/.test(header)) return Number(header);
  const date = Date.parse(header);
  return Number.isNaN(date) ? null : Math.max(0, (date - now) / 1000);
}

export const models = (key) => request("v1/models", { key });
export const classify = (body, key, signal) => request("v1/classify", { body, key, signal });

// How long to wait before the same request again, or null where that is of no use.
export function patience(problem, attempt) {
  if (problem.kind === "busy" || problem.kind === "away") return Math.min(problem.retryAfter ?? Math.min(2 ** attempt, 30), 600);
  if (["network", "slow", "server"].includes(problem.kind) && attempt < 3) return problem.retryAfter ?? 2 ** attempt;
  return null;
}

// Resolves after so many seconds, or at once when the signal is given.
export function sleep(time, signal) {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const end = () => { clearTimeout(timer); signal.removeEventListener("abort", end); resolve(); };
    const timer = setTimeout(end, 1000 * time);
    signal.addEventListener("abort", end);
  });
}
