// Charts by Chart.js, each with its figures as a table beside it.
let charts = [];

function color(name, alpha) {
  const value = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return alpha === undefined ? value : `rgba(${value.split(" ").join(", ")}, ${alpha})`;
}

function makeChart(canvas, build) {
  charts.push({ canvas, build, chart: null });
}

// Charts are drawn once they are in the page, and again in other colours.
function drawCharts(onlyNew) {
  Chart.defaults.animation = false;
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  Chart.defaults.color = color("--soft");
  Object.assign(Chart.defaults.plugins.legend.labels, { usePointStyle: true, boxHeight: 7 });
  Chart.defaults.borderColor = color("--line");
  for (const entry of charts) {
    if (entry.chart && onlyNew) continue;
    if (entry.chart) entry.chart.destroy();
    const made = entry.build();
    made.options = { responsive: true, maintainAspectRatio: false, ...made.options };
    made.plugins = [...(made.plugins || []), whiskers];
    entry.chart = new Chart(entry.canvas, made);
  }
}

function forgetCharts() {
  for (const entry of charts) if (entry.chart) entry.chart.destroy();
  charts = [];
}

// One section with charts, put together anew.
function chartsAgain(id, make) {
  const old = document.getElementById(id);
  for (const entry of charts) if (old.contains(entry.canvas)) entry.chart.destroy();
  charts = charts.filter((entry) => !old.contains(entry.canvas));
  again(id, make);
  drawCharts(true);
}

// Brackets for datasets with `intervals`, which Chart.js has not.
const whiskers = {
  id: "whiskers",
  afterDatasetsDraw(chart) {
    chart.data.datasets.forEach((set, index) => {
      if (!set.intervals) return;
      const pen = chart.ctx;
      pen.save();
      pen.strokeStyle = color("--ink");
      pen.lineWidth = 1.5;
      chart.getDatasetMeta(index).data.forEach((point, i) => {
        const pair = set.intervals[i];
        if (!pair) return;
        const [low, high] = pair.map((v) => chart.scales.y.getPixelForValue(v));
        pen.beginPath();
        for (const y of [low, high]) { pen.moveTo(point.x - 5, y); pen.lineTo(point.x + 5, y); }
        pen.moveTo(point.x, low);
        pen.lineTo(point.x, high);
        pen.stroke();
      });
      pen.restore();
    });
  },
};

function chartBox(title, label, heads, rows, build, square) {
  const canvas = el("canvas", { role: "img", "aria-label": label });
  makeChart(canvas, build);
  return el("div", { class: square ? "chart square" : "chart" }, title ? el("h3", {}, title) : null,
    el("div", { class: "canvas" }, canvas), rows.length ? folded(w("asTable"), table(heads, rows)) : null);
}

const axis = (text, more) => ({ title: { display: true, text }, grid: { color: color("--line") }, ...more });

function lineChart(title, points, lines, digits) {
  const heads = [w("step"), ...lines.map(([key]) => w(key))];
  const rows = points.map((p) => [whole(p.step), ...lines.map(([key]) => fixed(p[key], digits))]);
  return chartBox(title, title, heads, rows, () => ({
    type: "line",
    data: { datasets: lines.map(([key, name]) => ({
      label: w(key), data: points.filter((p) => isNumber(p[key])).map((p) => ({ x: p.step, y: p[key] })),
      borderColor: color(name), backgroundColor: color(name), borderWidth: 2, pointRadius: points.length > 40 ? 0 : 3, tension: 0,
    })) },
    options: {
      parsing: false, interaction: { mode: "nearest", axis: "x", intersect: false },
      plugins: { legend: { display: lines.length > 1 }, tooltip: { callbacks: { title: (items) => `${w("step")} ${whole(items[0].parsed.x)}` } } },
      scales: { x: axis(w("step"), { type: "linear", ticks: { precision: 0 } }), y: axis("") },
    },
  }));
}

function curvesSection() {
  const { train, dev } = DATA.curve;
  if (!train.length && !dev.length) return null;
  const boxes = [];
  if (train.length) boxes.push(lineChart(w("trainLoss"), train, [["loss", "--accent"]], 4));
  if (dev.length) {
    boxes.push(lineChart(w("devScores"), dev, [["macro_f1", "--accent"], ["accuracy", "--good"]], 4));
    boxes.push(lineChart(w("devLoss"), dev, [["log_loss", "--warn"]], 4));
  }
  return section("curves", w("curvesLead"), el("div", { class: "charts" }, boxes), dev.length ? null : el("p", { class: "hint" }, w("noDev")));
}

function reliabilityBox(name, figures) {
  const bins = figures.reliability.filter((b) => b.count);
  const line = w("eceIs", { ece: fixed(figures.ece), loss: fixed(figures.log_loss) });
  const rows = bins.map((b) => [`${fixed(b.low, 2)} – ${fixed(b.high, 2)}`, whole(b.count), fixed(b.confidence), fixed(b.accuracy)]);
  const box = chartBox(name, `${name}: ${line}`, [w("confidence"), w("count"), w("onlyThese"), w("shareRight")], rows, () => ({
    type: "bar",
    data: { datasets: [
      { type: "line", label: w("perfect"), data: [{ x: 0, y: 0 }, { x: 1, y: 1 }], borderColor: color("--soft"), borderDash: [6, 5], borderWidth: 1.5, pointRadius: 0 },
      { label: w("shareRight"), data: figures.reliability.map((b) => ({ x: (b.low + b.high) / 2, y: b.accuracy, bin: b })),
        backgroundColor: figures.reliability.map((b) => color("--tint", b.count < 10 ? 0.3 : 0.8)), barPercentage: 1, categoryPercentage: 0.94 },
    ] },
    options: {
      plugins: { legend: { display: false }, tooltip: { callbacks: {
        title: (items) => (items[0].raw.bin ? `${fixed(items[0].raw.bin.low, 2)} – ${fixed(items[0].raw.bin.high, 2)}` : ""),
        label: (item) => (item.raw.bin ? `${w("shareRight")} ${fixed(item.raw.bin.accuracy)}; ${w("onlyThese")} ${fixed(item.raw.bin.confidence)}; ${w("rows", { n: whole(item.raw.bin.count) })}` : w("perfect")) } } },
      scales: { x: axis(w("confidence"), { type: "linear", min: 0, max: 1, offset: false, grid: { color: color("--line"), offset: false } }), y: axis(w("shareRight"), { min: 0, max: 1 }) },
    },
  }), true);
  box.insertBefore(el("p", { class: "hint" }, line), box.children[1]);
  return box;
}

function calibrationSection() {
  const m = DATA.metrics;
  if (!m || !m.reliability) return null;
  const method = m.calibration && m.calibration.method;
  const changed = m.uncalibrated && method !== "none";
  const boxes = changed ? [reliabilityBox(w("uncalibrated"), m.uncalibrated), reliabilityBox(w("calibrated"), m)] : [reliabilityBox(w("uncalibrated"), m)];
  return section("calibration", w("calibrationLead"), el("div", { class: "charts" }, boxes));
}

function riskSection() {
  const m = DATA.metrics;
  if (!m || !m.risk_coverage) return null;
  const points = m.risk_coverage;
  const line = m.calibration && isNumber(m.calibration.threshold)
    ? w("answeredLine", { t: fixed(m.calibration.threshold), share: percent(1 - m.abstain_rate), acc: percent(m.answered_accuracy) }) : w("noThreshold");
  const rows = Object.entries(m.selective_accuracy || {}).map(([c, a]) => [percent(Number(c), 0), fixed(1 - a, 4)]);
  const here = m.abstain_rate > 0 && isNumber(m.answered_accuracy) ? [{ x: 1 - m.abstain_rate, y: 1 - m.answered_accuracy }] : [];
  const box = chartBox("", w("riskLead"), [w("coverage"), w("riskOf")], rows, () => ({
    type: "line",
    data: { datasets: [
      { label: w("riskOf"), data: points.map((p) => ({ x: p.coverage, y: p.risk, t: p.threshold })), borderColor: color("--accent"), backgroundColor: color("--accent"), borderWidth: 2, pointRadius: 0, pointHitRadius: 8 },
      { label: w("allAnswered"), data: [{ x: 0, y: 1 - m.accuracy }, { x: 1, y: 1 - m.accuracy }], borderColor: color("--soft"), borderDash: [6, 5], borderWidth: 1.5, pointRadius: 0 },
      ...(here.length ? [{ label: w("atThreshold"), data: here, borderColor: color("--bad"), backgroundColor: color("--bad"), pointRadius: 6, showLine: false }] : []),
    ] },
    options: {
      plugins: { tooltip: { callbacks: { title: () => "", label: (i) => `${w("coverage")} ${percent(i.raw.x)}, ${w("riskOf")} ${percent(i.raw.y)}${isNumber(i.raw.t) ? `, ${w("threshold")} ${fixed(i.raw.t)}` : ""}` } } },
      scales: { x: axis(w("coverage"), { type: "linear", min: 0, max: 1, ticks: { callback: (v) => percent(v, 0) } }), y: axis(w("riskOf"), { min: 0, ticks: { callback: (v) => percent(v, Math.abs(100 * v - Math.round(100 * v)) > 1e-6 ? 1 : 0) } }) },
    },
  }));
  return section("risk", w("riskLead"), el("p", { class: "hint" }, line), box);
}

function lengthSection() {
  if (!DATA.length.length) return null;
  const bins = DATA.length;
  const names = bins.map((b) => (b.low === b.high ? whole(b.low) : `${whole(b.low)}–${whole(b.high)}`));
  const rows = bins.map((b, i) => [names[i], whole(b.n), percent(b.accuracy), range(b.interval, percent)]);
  const box = chartBox("", w("lengthLead"), [w("characters"), w("count"), w("accuracy"), "95 %"], rows, () => ({
    type: "bar",
    data: { labels: names, datasets: [{ label: w("accuracy"), data: bins.map((b) => b.accuracy), intervals: bins.map((b) => b.interval), backgroundColor: color("--tint", 0.6) }] },
    options: {
      plugins: { legend: { display: false }, tooltip: { callbacks: { label: (i) => `${percent(i.parsed.y)} (${range(bins[i.dataIndex].interval, percent)}), ${w("rows", { n: whole(bins[i.dataIndex].n) })}` } } },
      scales: { x: axis(w("characters"), { grid: { display: false } }), y: axis(w("accuracy"), { min: 0, max: 1, ticks: { callback: (v) => percent(v, 0) } }) },
    },
  }));
  return section("length", w("lengthLead"), box, truncationPart());
}

function truncationPart() {
  const t = DATA.truncation;
  if (!t) return null;
  if (!t.shortened.n) return el("div", {}, el("h3", {}, w("truncation")), el("p", { class: "hint" }, w("noneShortened")));
  const all = t.shortened.n + t.whole.n;
  const rows = ["whole", "shortened"].map((k) => [w(k), whole(t[k].n), percent(t[k].accuracy), range(t[k].interval, percent)]);
  return el("div", {}, el("h3", {}, w("truncation")),
    el("p", { class: "hint" }, w("truncationLine", { n: whole(t.shortened.n), all: whole(all), share: percent(t.shortened.n / all), a: percent(t.shortened.accuracy), b: percent(t.whole.accuracy) })),
    table([w("text"), w("count"), w("accuracy"), "95 %"], rows));
}
