// Precision against recall, each class against all others; one class at a time, or the weakest ones.
const AT_ONCE = 6;
const LINES = [["--accent", []], ["--bad", [8, 4]], ["--good", [2, 3]], ["--warn", [10, 3, 2, 3]], ["--violet", [14, 4]], ["--teal", [4, 2]]];

const weakest = () => [...DATA.precision.curves].sort((a, b) => a.ap - b.ap).slice(0, AT_ONCE);
const chosenCurves = () => (state.curve >= 0 ? [DATA.precision.curves[state.curve]] : weakest());

// Points are whole numbers, a thousand for 1. A point's precision holds from the recall before it on: the area is the AP.
function precisionLine(c, color_, dash) {
  const points = c.recall.map((r, i) => ({ x: r / 1000, y: c.precision[i] / 1000, t: c.threshold[i] / 1000 }));
  return { label: `${short(c.label)} (${w("ap", { v: fixed(c.ap) })})`, data: [{ ...points[0], x: 0 }, ...points], stepped: "after",
    borderColor: color(color_), backgroundColor: color(color_), borderDash: dash, borderWidth: 2, pointRadius: 0, pointHitRadius: 6 };
}

const short = (text) => (text.length > 24 ? `${text.slice(0, 23)}…` : text);

function precisionChart(curves, alone) {
  const sets = curves.map((c, i) => precisionLine(c, ...LINES[i]));
  if (alone) {
    const share = curves[0].rows / DATA.n;
    sets.push({ label: w("byChance", { v: percent(share) }), data: [{ x: 0, y: share }, { x: 1, y: share }], borderColor: color("--soft"), backgroundColor: color("--soft"),
      borderDash: [6, 5], borderWidth: 1.5, pointRadius: 0, pointHitRadius: 0 });
  }
  const told = (p) => `${w("recall")} ${fixed(p.x)}, ${w("precision")} ${fixed(p.y)}${isNumber(p.t) ? `, ${w("probabilityFrom", { v: fixed(p.t) })}` : ""}`;
  return {
    type: "line", data: { datasets: sets },
    options: {
      parsing: false, interaction: { mode: "nearest", intersect: false },
      plugins: { legend: { labels: { pointStyle: "line", pointStyleWidth: 34 } }, tooltip: { callbacks: { title: () => "", label: (i) => `${i.dataset.label}: ${told(i.raw)}` } } },
      scales: { x: axis(w("recall"), { type: "linear", min: 0, max: 1 }), y: axis(w("precision"), { min: 0, max: 1 }) },
    },
  };
}

function precisionRecallSection() {
  const p = DATA.precision;
  if (!p || !p.curves.length) return null;
  const curves = chosenCurves();
  const alone = state.curve >= 0;
  const some = p.curves.length > AT_ONCE;
  const first = w(some ? "weakestClasses" : "allClasses", { n: AT_ONCE });
  const select = el("select", { id: "curve", onchange: (e) => { state.curve = Number(e.target.value); writeAddress(); chartsAgain("precisionRecall", precisionRecallSection); document.getElementById("curve").focus(); } },
    [[-1, first], ...p.curves.map((c, i) => [i, c.label])].map(([value, text]) => el("option", { value, selected: state.curve === value }, text)));
  const rows = alone
    ? curves[0].recall.map((r, i) => [fixed(r / 1000), fixed(curves[0].precision[i] / 1000), fixed(curves[0].threshold[i] / 1000)])
    : [...p.curves].sort((a, b) => a.ap - b.ap).map((c) => [c.label, fixed(c.ap), whole(c.rows)]);
  const heads = alone ? [w("recall"), w("precision"), w("threshold")] : [w("label"), w("averagePrecision"), w("support")];
  const label = `${w("precisionRecall")}: ${curves.map((c) => `${c.label} ${w("ap", { v: fixed(c.ap) })}`).join(", ")}`;
  return section("precisionRecall", w("precisionRecallLead"),
    el("p", { class: "hint" }, w("meanAp", { v: fixed(p.average), n: whole(p.classes) }), p.classes > p.curves.length ? ` ${w("curvesMany", { n: whole(p.curves.length) })}` : ""),
    el("div", { class: "tools" }, el("label", {}, w("label"), select)), chartBox("", label, heads, rows, () => precisionChart(curves, alone)));
}
