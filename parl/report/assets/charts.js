"use strict";
// The line charts.
function domain(chart) {
  const ys = chart.series.flatMap(s => s.points.map(p => p[1]));
  let low = Math.min(...ys), high = Math.max(...ys);
  if (chart.zero) low = Math.min(0, low);
  if (chart.max !== undefined) { high = Math.max(high, chart.max); low = Math.min(low, 0); }
  if (high - low < 1e-9) { high += 0.5; low -= chart.zero ? 0 : 0.5; }
  const pad = (high - low) * 0.05;
  return [chart.zero || (chart.max !== undefined && low === 0) ? low : low - pad, chart.max === high ? high : high + pad];
}

function drawChart(chart, host, width) {
  const height = 200, left = 44, right = 12, top = 18, bottom = 24;
  const xs = chart.series.flatMap(s => s.points.map(p => p[0]));
  const x0 = Math.min(...xs), x1 = chart.x === "score" ? 1 : Math.max(Math.max(...xs), x0 + 1), [y0, y1] = domain(chart);
  const X = v => left + (v - x0) / (x1 - x0) * (width - left - right);
  const Y = v => height - bottom - (v - y0) / (y1 - y0) * (height - top - bottom);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": chart.title });
  if (chart.zero_lambda !== null && chart.zero_lambda < x1) {
    const x = X(Math.max(chart.zero_lambda, x0));
    root.append(svg("rect", { x, y: top, width: width - right - x, height: height - top - bottom, fill: "var(--band)" }),
      svg("text", { x: (x + width - right) / 2, y: top - 5, "text-anchor": "middle" }, "λ = 0"));
  }
  for (const v of ticks(y0, y1, 4)) {
    root.append(svg("line", { x1: left, x2: width - right, y1: Y(v), y2: Y(v), stroke: "var(--grid)" }),
      svg("text", { x: left - 7, y: Y(v) + 4, "text-anchor": "end" }, format(v)));
  }
  const whole = v => chart.x === "score" || Number.isInteger(v);
  for (const v of ticks(x0, x1, Math.max(2, Math.floor(width / 55))).filter(whole)) {
    root.append(svg("text", { x: X(v), y: height - 7, "text-anchor": "middle" }, format(v)));
  }
  root.append(svg("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, stroke: "var(--line)" }));
  root.append(svg("text", { x: left - 7, y: height - 7, "text-anchor": "end" }, chart.x || "step"));
  for (const s of chart.series) {
    const color = `var(--${s.color})`;
    root.append(svg("polyline", { points: s.points.map(p => `${X(p[0])},${Y(p[1])}`).join(" "), fill: "none", stroke: color,
      "stroke-width": 2, "stroke-linejoin": "round", "stroke-linecap": "round" }));
    const end = s.points[s.points.length - 1];
    root.append(svg("circle", { cx: X(end[0]), cy: Y(end[1]), r: 3, fill: color }));
  }
  const cursor = svg("g", { visibility: "hidden" });
  root.append(cursor);
  const move = event => {
    const at = (event.clientX - root.getBoundingClientRect().left) * width / root.getBoundingClientRect().width;
    const step = xs.reduce((best, x) => Math.abs(X(x) - at) < Math.abs(X(best) - at) ? x : best, xs[0]);
    cursor.replaceChildren(svg("line", { x1: X(step), x2: X(step), y1: top, y2: height - bottom, stroke: "var(--soft)", "stroke-dasharray": "3 3" }));
    const rows = [];
    for (const s of chart.series) {
      const point = s.points.find(p => p[0] === step);
      if (!point) continue;
      cursor.append(svg("circle", { cx: X(step), cy: Y(point[1]), r: 4, fill: `var(--${s.color})`, stroke: "var(--card)", "stroke-width": 1.5 }));
      const name = el("td", { class: "legend" });
      name.append(el("span", { style: `--c: var(--${s.color})` }, s.name));
      rows.push(el("tr", {}, name, el("td", {}, format(point[1]))));
    }
    cursor.setAttribute("visibility", "visible");
    showTip(event.clientX, event.clientY, el("b", {}, `${chart.x || "step"} ${format(step)}`), el("table", {}, ...rows));
  };
  root.addEventListener("pointermove", move);
  root.addEventListener("pointerdown", move);
  root.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); hideTip(); });
  host.replaceChildren(root);
}

for (const [place, charts] of [["#curves .grid", DATA.charts], ["#spread .grid", DATA.spread]]) for (const chart of charts) {
  const grid = document.querySelector(place);
  const plot = el("div");
  const legend = el("div", { class: "legend" });
  for (const s of chart.series) legend.append(el("span", { style: `--c: var(--${s.color})` }, s.name));
  grid.append(el("div", { class: "card" }, el("h3", {}, chart.title), el("p", {}, chart.note), plot, legend));
  onWidth(plot, width => drawChart(chart, plot, width));
}
