"use strict";
// The swarm timeline: a lane per agent, by step or by time.
const swarm = document.getElementById("swarm");

function turnSummary(agent, index) {
  const turn = agent.turns[index], seconds = turn.t[2] - turn.t[0];
  const who = agent.parent === null ? "orchestrator" : `sub-agent ${agent.id} ${agent.name}`;
  const head = `${who} · turn ${index + 1} of ${agent.turns.length}`;
  const facts = [`${turn.tokens} tokens`, `${seconds.toFixed(2)} s`];
  if (turn.spawned.length) facts.push(`starts ${turn.spawned.length} sub-agent${turn.spawned.length > 1 ? "s" : ""}`);
  if (turn.critical) facts.push("on the critical path");
  return [el("b", {}, head), el("div", { class: "figures" }, facts.join(" · "))];
}

function callLines(turn, limit) {
  const lines = turn.calls.slice(0, limit).map(call => `${call.name}(${call.arguments})`);
  if (turn.calls.length > limit) lines.push(`… and ${turn.calls.length - limit} more`);
  return lines.join("\n");
}

function shortTurn(agent, index) {
  const turn = agent.turns[index], text = [turn.text, callLines(turn, 4)].filter(Boolean).join("\n");
  const parts = turnSummary(agent, index);
  if (index === 0 && agent.parent !== null && agent.prompt) parts.push(el("pre", {}, "asked: " + agent.prompt.slice(0, 200)));
  if (text) parts.push(el("pre", {}, text.slice(0, 420)));
  if (turn.malformed) parts.push(el("pre", { class: "bad" }, turn.malformed));
  return parts;
}

function fullTurn(agent, index) {
  const turn = agent.turns[index], parts = turnSummary(agent, index);
  if (index === 0 && agent.prompt && agent.parent !== null) parts.push(el("pre", {}, "asked: " + agent.prompt));
  if (turn.text) parts.push(el("pre", {}, turn.text));
  turn.calls.forEach((call, i) => {
    parts.push(el("pre", {}, `${call.name}(${call.arguments})`));
    const result = turn.results[i];
    if (result) parts.push(el("pre", result.error ? { class: "bad" } : {}, "→ " + (result.error ? `[${result.error}] ` : "") + result.text));
  });
  if (turn.malformed) parts.push(el("pre", { class: "bad" }, "malformed: " + turn.malformed));
  if (agent.parent !== null && index === agent.turns.length - 1 && agent.message && agent.message !== turn.text) {
    parts.push(el("pre", {}, "returned: " + agent.message));
  }
  return parts;
}

function laneLabel(agents, agent) {
  if (agent.parent === null) return "orchestrator";
  const shared = agents.some(other => other !== agent && other.name === agent.name);  // one configuration, many instances
  return shared || !agent.name ? `${agent.name} ${agent.id.split("/").slice(1).join("/")}`.trim() : agent.name;
}

function drawSwarm(episode, mode, host, pinned, width) {
  const agents = episode.agents, byId = Object.fromEntries(agents.map((a, i) => [a.id, i]));
  const lane = agents.length > 40 ? 18 : 27, thick = lane - 9, top = 8, bottom = 38;
  const left = width < 560 ? 94 : 150, right = 14, height = top + agents.length * lane + bottom;
  const byStep = mode === "step";
  const span = turn => byStep ? [turn.column, turn.column + 1] : [turn.t[0], turn.t[2]];
  const all = agents.flatMap(a => a.turns.map(span));
  const end = Math.max(byStep ? 1 : 0.001, ...all.map(s => s[1]));
  const X = v => left + v / end * (width - left - right), mid = i => top + i * lane + lane / 2;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": "swarm timeline" });
  const floor = top + agents.length * lane + 6;
  for (const v of ticks(0, end, Math.max(3, Math.floor(width / 100)))) {
    if (byStep && !Number.isInteger(v)) continue;
    root.append(svg("line", { x1: X(v), x2: X(v), y1: top, y2: floor, stroke: "var(--grid)" }),
      svg("text", { x: X(v), y: floor + 15, "text-anchor": "middle" }, format(v)));
  }
  root.append(svg("text", { x: (left + width - right) / 2, y: floor + 30, "text-anchor": "middle" }, byStep ? "critical steps" : "seconds"));
  const edges = svg("g", { fill: "none" }), strong = svg("g", { fill: "none" }), bars = svg("g");
  root.append(edges, strong, bars);
  const line = (d, critical, dashed) => (critical ? strong : edges).append(svg("path", { d, stroke: critical ? "var(--critical)" : "var(--bar)",
    "stroke-width": critical ? 2 : 1.2, ...(dashed ? { "stroke-dasharray": "2 4" } : {}) }));

  agents.forEach((agent, i) => {
    const label = laneLabel(agents, agent), room = Math.floor((left - 12) / 7.2), tail = Math.floor(room / 3);
    const shown = label.length > room ? label.slice(0, room - tail - 1) + "…" + label.slice(-tail) : label;
    const text = svg("text", { x: left - 10, y: mid(i) + 4, "text-anchor": "end", class: "lane" }, shown);
    text.append(svg("title", {}, `${agent.id} ${label}: ${agent.status}\n${agent.prompt}`));
    if (agent.critical) text.setAttribute("font-weight", "600");
    root.append(text);
    if (agent.parent !== null && agent.status !== "finished") text.setAttribute("style", "fill: var(--bad)");
    agent.turns.forEach((turn, k) => {
      const [a, b] = span(turn), gap = byStep ? 1.5 : 0.5;
      const g = svg("g", { class: "turn", tabindex: 0, role: "button", "aria-label": `${label}, turn ${k + 1}` });
      const y = mid(i) - thick / 2, color = turn.malformed ? "var(--bad)" : turn.critical ? "var(--critical)" : agent.parent === null ? "var(--trained)" : "var(--bar)";
      const solid = byStep ? b : turn.t[1];
      if (!byStep) {
        g.append(svg("rect", { x: X(a), y, width: Math.max(2, X(b) - X(a)), height: thick, rx: 3, fill: "var(--wait)" }));
      }
      g.append(svg("rect", { x: X(a) + gap, y, width: Math.max(2, X(solid) - X(a) - 2 * gap), height: thick, rx: 3, fill: color }));
      const inside = turn.spawned.length ? `+${turn.spawned.length}` : "";
      if (byStep && inside && X(b) - X(a) > 24 && thick > 12) g.append(svg("text", { x: (X(a) + X(b)) / 2, y: mid(i) + 4, "text-anchor": "middle", class: "in" }, inside));
      g.addEventListener("pointermove", event => showTip(event.clientX, event.clientY, ...shortTurn(agent, k)));
      g.addEventListener("pointerleave", hideTip);
      const pin = () => {
        hideTip();
        root.querySelectorAll(".on").forEach(node => node.classList.remove("on"));
        g.classList.add("on");
        pinned.replaceChildren(el("div", { class: "pinned" }, ...fullTurn(agent, k)));
      };
      g.addEventListener("click", pin);
      g.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pin(); } });
      bars.append(g);
    });
    // What this agent's turns launched: a trunk down from the turn, a branch into each lane, and the way back to the next turn.
    agent.turns.forEach((turn, k) => {
      const children = turn.spawned.filter(id => id in byId && agents[byId[id]].turns.length);
      if (!children.length) return;
      const out = X(byStep ? turn.column + 1 : turn.t[1]);
      const last = Math.max(...children.map(id => span(agents[byId[id]].turns.at(-1))[1]));
      const next = agent.turns[k + 1], back = X(byStep ? (next ? next.column : last) : Math.max(turn.t[2], last));
      for (const id of children) {
        const child = agents[byId[id]], row = byId[id], critical = turn.critical && child.turns[0].critical;
        line(`M${out},${mid(i)} V${mid(row)} H${X(span(child.turns[0])[0])}`, critical);
        const done = X(span(child.turns.at(-1))[1]);
        if (back - done > 1.5) line(`M${done},${mid(row)} H${back}`, critical, !critical);
        line(`M${back},${mid(row)} V${mid(i)}`, critical);
      }
      if (byStep) line(`M${out},${mid(i)} H${back}`, false, true);
    });
  });
  host.replaceChildren(root);
}

function episodeFigures(episode) {
  const parts = [["critical steps", episode.critical_steps], ["total steps", episode.total_steps], ["sub-agents", episode.agents.length - 1]];
  if (episode.oracle) parts.push(["best possible", episode.oracle.parallel], ["one agent alone", episode.oracle.serial]);
  if ("perf" in episode.rewards) parts.push(["r_perf", format(episode.rewards.perf)]);
  const line = el("p", { class: "figures" });
  parts.forEach(([name, value], i) => line.append(i ? " · " : "", `${name} `, el("b", {}, String(value))));
  if (episode.status !== "answered") line.append(" · ", el("b", {}, `${episode.status} ${episode.limit}`));
  return line;
}

if (swarm) {
  let mode = "step", current = 0, width = 0;
  const host = el("div"), pinned = el("div"), text = el("div");
  const select = el("select", { "aria-label": "episode" });
  DATA.timelines.forEach((episode, i) => {
    const kind = `${episode.family.replaceAll("_", " ")}${episode.width > 1 ? `, width ${episode.width}` : ""}`;
    select.append(el("option", { value: i }, `${kind}: ${episode.critical_steps} critical steps, ${episode.agents.length - 1} sub-agents (${episode.policy.replaceAll("_", " ")})`));
  });
  const toggle = el("div", { class: "toggle", role: "group" });
  for (const [key, label] of [["step", "by step"], ["time", "by time"]]) {
    const button = el("button", { type: "button", "aria-pressed": key === mode }, label);
    button.addEventListener("click", () => {
      mode = key;
      toggle.querySelectorAll("button").forEach(b => b.setAttribute("aria-pressed", b === button));
      draw();
    });
    toggle.append(button);
  }
  const legend = el("div", { class: "legend" });
  for (const [color, label] of [["critical", "critical path"], ["bar", "off it"], ["wait", "waiting for tools or sub-agents, by time"]]) {
    legend.append(el("span", { class: "box", style: `--c: var(--${color})` }, label));
  }
  legend.append(el("span", { class: "dots", style: "--c: var(--bar)" }, "done, the others are not"));
  function draw() {
    if (width) drawSwarm(DATA.timelines[current], mode, host, pinned, width);
  }
  function choose() {
    const episode = DATA.timelines[current];
    text.replaceChildren(el("p", { class: "quote" }, episode.prompt), episodeFigures(episode));
    pinned.replaceChildren(el("p", { class: "figures" }, "Hover a bar for a glance; click it to read the whole turn here."));
    draw();
  }
  select.addEventListener("change", () => { current = +select.value; choose(); });
  swarm.append(el("div", { class: "card" }, el("div", { class: "bar" }, select, toggle), text, host, legend, pinned));
  onWidth(host, w => { width = w; draw(); });
  choose();
}
