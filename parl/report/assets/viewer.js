"use strict";
// The swarm viewer: one episode at a time, chosen by the list or by the address (#episode/agent/turn).

const HELP = [
  ["drag, wheel (with Shift sideways)", "move the picture"], ["Ctrl or ⌘ + wheel, pinch, + and −", "zoom"], ["0", "the whole episode"],
  ["← →", "the agent's turn before or after"], ["↑ ↓", "the lane above or below"], ["c and C", "the critical path: next turn, turn before"],
  ["u", "up to the turn that launched this agent"], ["t", "by step, by time"], ["/", "search"], ["n and N", "next match, match before"],
  ["Shift + arrows", "move the picture"], ["Esc", "nothing chosen"],
];

function buildViewer(section) {
  const ui = {
    canvas: el("canvas", { tabindex: 0, role: "application", "aria-label": "Timeline of the swarm. Arrow keys go from turn to turn.", "aria-describedby": "viewer-keys" }),
    select: el("select", { "aria-label": "Episode" }), order: el("select", { "aria-label": "Order of the lanes" }),
    search: el("input", { type: "search", placeholder: "Search text or agent", "aria-label": "Search text or agent", spellcheck: "false" }),
    found: el("span", { class: "found", role: "status" }), prompt: el("p", { class: "quote", tabindex: 0 }), figures: el("div"),
    why: el("p", { class: "why" }), split: el("p", { class: "figures" }), stages: el("div"),
    head: el("h3"), body: el("div", { class: "body" }), nav: el("div", { class: "nav" }), said: el("p", { class: "unseen", role: "status" }), modes: {},
  };
  const groups = new Map();
  DATA.episodes.forEach((e, i) => {
    if (!groups.has(e.group)) { groups.set(e.group, el("optgroup", { label: e.group })); ui.select.append(groups.get(e.group)); }
    const wide = e.width > 1 ? `, width ${e.width}` : "", end = e.status === "answered" ? "" : `, ${e.status.replaceAll("_", " ")}`;
    groups.get(e.group).append(el("option", { value: i }, `${e.family.replaceAll("_", " ")}${wide}: ${plural(e.critical_steps, "critical step")}, ${plural(e.subagents, "sub-agent")}${end} (${e.id})`));
  });
  for (const [value, label] of [["launch", "lanes as launched"], ["steps", "most steps first"], ["seconds", "slowest first"]]) ui.order.append(el("option", { value }, label));
  return ui;
}

class Viewer {
  constructor(section) {
    this.ui = buildViewer(section);
    this.scene = new Scene(this.ui.canvas);
    this.at = -1;
    this.query = "";
    this.hits = [];
    this.pointers = new Map();
    this.assemble(section);
    this.listen();
    const theme = matchMedia("(prefers-color-scheme: dark)");
    theme.addEventListener("change", () => { this.scene.readColors(); this.scene.request(); });
    onWidth(this.board, () => this.measure());
    addEventListener("resize", () => this.measure());
    addEventListener("hashchange", () => this.readAddress());
    this.readAddress();
  }

  assemble(section) {
    const ui = this.ui, toggle = el("div", { class: "toggle", role: "group", "aria-label": "Axis" });
    for (const [mode, label] of [["step", "by step"], ["time", "by time"]]) {
      ui.modes[mode] = button(label, () => this.setMode(mode), { "aria-pressed": mode === "step" });
      toggle.append(ui.modes[mode]);
    }
    const tools = el("div", { class: "tools" },
      el("div", { class: "finder" }, ui.search, button("‹", () => this.step(-1), { "aria-label": "Match before" }), button("›", () => this.step(1), { "aria-label": "Next match" }), ui.found),
      el("div", { class: "zooms" }, button("−", () => this.scene.zoom(1 / 1.5), { "aria-label": "Zoom out" }), button("+", () => this.scene.zoom(1.5), { "aria-label": "Zoom in" }), button("fit", () => this.scene.fit(), { title: "show the whole episode" })));
    const keys = el("dl", { id: "viewer-keys" });
    for (const [key, what] of HELP) keys.append(el("dt", {}, key), el("dd", {}, what));
    const legend = el("div", { class: "legend" });
    for (const [color, label] of [["critical", "critical path"], ["bar", "off it"], ["wait", "by time: waiting for tools or sub-agents"], ["fault", "a tool's error, or malformed"]]) {
      legend.append(el("span", { class: "box", style: `--c: var(--${color})` }, label));
    }
    legend.append(el("span", { class: "dots", style: "--c: var(--bar)" }, "done, others are not"));
    this.board = el("div", { class: "board" }, ui.canvas);
    this.panel = el("aside", { class: "panel", "aria-label": "The chosen turn" }, el("div", { class: "panel-head" }, ui.head, ui.nav), ui.body);
    section.append(el("div", { class: "card viewer" }, el("div", { class: "bar" }, ui.select, toggle, ui.order), ui.prompt, ui.figures, ui.why, ui.split, tools,
      el("div", { class: "split" }, this.board, this.panel), legend, ui.stages, el("details", { class: "keys" }, el("summary", {}, "Keys and gestures: drag to move, Ctrl + wheel or pinch to zoom"), keys), ui.said));
  }

  // ---------------------------------------------------------------- which episode, which turn

  async open(index) {
    this.at = index;
    this.ui.select.value = index;
    this.ui.head.textContent = "unpacking …";
    let episode;
    try {
      episode = await unpackEpisode(index);
    } catch (error) {
      this.ui.head.textContent = `This browser cannot unpack the episode (${error.message}). It needs DecompressionStream: Chrome 80, Firefox 113, Safari 16.4 or later.`;
      return false;
    }
    if (this.at !== index) return false;
    this.episode = episode;
    this.texts = null;
    this.ui.order.value = "launch";
    this.ui.prompt.textContent = episode.prompt;
    this.ui.figures.replaceChildren(episodeFigures(episode));
    if (episode.note) this.ui.figures.append(el("p", { class: "figures" }, `Too large for this page as a whole: ${episode.note}.`));
    this.ui.split.textContent = timeSplit(episode);
    this.ui.stages.replaceChildren(stageTable(episode, (a, k) => this.choose(a, k, { reveal: true })));
    this.scene.show(episode);
    this.measure();
    this.scene.fit();
    this.explain();
    this.search(this.query);
    this.choose(null, 0, { address: false });
    requestAnimationFrame(() => performance.mark("episode-drawn"));
    return true;
  }

  explain() {
    const { text, agent } = diagnosis(this.episode, this.scene.mode);
    this.ui.why.replaceChildren(text);
    if (agent !== undefined) this.ui.why.append(button("go there", () => this.choose(agent, 0, { reveal: true }), { class: "link" }));
  }

  // Chooses a turn: shows it, and puts it into the address. `quiet` replaces the last address instead of adding one.
  choose(agent, turn = 0, { reveal = false, quiet = false, address = true } = {}) {
    const { scene, ui, episode } = this;
    scene.selected = agent === null ? null : { agent, turn };
    if (agent === null) {
      ui.head.textContent = "No turn chosen";
      ui.nav.replaceChildren();
      ui.body.replaceChildren(el("p", { class: "figures" }, "Click a bar to read its turn: messages, tool calls and results, tokens with log-probs. The coloured path is critical: only shortening it makes the episode faster."),
        button("start of the critical path", () => this.choose(0, 0, { reveal: true }), { class: "jump" }));
    } else {
      const shown = episode.agents[agent], go = (a, k) => this.choose(a, k, { reveal: true });
      ui.head.textContent = turnHead(shown, turn);
      ui.said.textContent = `${turnHead(shown, turn)}. ${shown.turns[turn] ? pathWords(shown.turns[turn]) : ""}`;
      const at = (k, label, name) => button(label, () => go(agent, k), { "aria-label": name, ...(k in shown.turns ? {} : { disabled: "" }) });
      ui.nav.replaceChildren(at(turn - 1, "‹", "Turn before"), at(turn + 1, "›", "Next turn"));
      if (shown.parent !== null) ui.nav.append(button("↑", () => go(shown.parent, shown.parent_turn), { "aria-label": "Turn that launched this agent" }));
      ui.body.replaceChildren(...turnDetails(episode, { agent, turn }, go));
      ui.body.scrollTop = 0;
      if (reveal) scene.reveal(agent, turn);
    }
    if (address && this.episode) this.writeAddress(quiet);
    scene.request();
  }

  writeAddress(quiet) {
    const chosen = this.scene.selected, parts = [address(this.episode.id)];
    if (chosen) parts.push(this.episode.agents[chosen.agent].id.replaceAll("/", "."), Math.max(1, chosen.turn + 1));
    const hash = chosen || location.hash ? `#${parts.join("/")}` : "";
    if (hash && hash !== location.hash) history[quiet || !chosen ? "replaceState" : "pushState"](null, "", hash);
  }

  async readAddress() {
    const [name, agentId, turn] = location.hash.slice(1).split("/").map(readable);
    const index = DATA.episodes.findIndex(e => e.id === name), wanted = Math.max(0, index);
    if (this.at !== wanted && !(await this.open(wanted))) return;
    const agent = this.episode.agents.findIndex(a => a.id === (agentId || "").replaceAll(".", "/"));
    if (agent < 0 || index < 0) {
      this.choose(null, 0, { address: false });
      if (index < 0 && agentId) this.ui.head.textContent = `This page does not hold the episode ${name}`;
      else if (agentId) this.ui.head.textContent = `This episode has no agent ${agentId.replaceAll(".", "/")}`;
    } else {
      const k = Math.min(Math.max(0, (parseInt(turn, 10) || 1) - 1), this.episode.agents[agent].turns.length - 1);
      this.choose(agent, k, { reveal: true, address: false });
    }
    if (index >= 0) this.board.scrollIntoView({ block: "nearest" });
  }

  setMode(mode) {
    const chosen = this.scene.selected;
    for (const [name, node] of Object.entries(this.ui.modes)) node.setAttribute("aria-pressed", name === mode);
    this.scene.setMode(mode);
    this.explain();
    if (chosen) this.scene.reveal(chosen.agent, chosen.turn);
  }

  measure() {
    if (!this.episode || !this.board.clientWidth) return;
    const room = Math.max(240, Math.min(640, innerHeight * (innerWidth < 700 ? 0.55 : 0.68)));
    this.scene.resize(this.board.clientWidth, Math.round(Math.min(room, STRIP + AXIS + MAX_LANE * Math.max(4, this.episode.agents.length))));
    this.panel.style.setProperty("--board", `${Math.max(360, this.scene.height)}px`);
    this.ui.canvas.style.touchAction = this.scene.overflowsDown() || this.scene.view.lane < MAX_LANE ? "none" : "pan-y";
  }

  // ---------------------------------------------------------------- search

  // What can be found of each turn, in small letters; made when first needed.
  haystack() {
    this.texts ??= this.episode.agents.map(agent => agent.turns.map((turn, k) => [
      turn.text, turn.malformed, ...turn.calls.map(c => `${c.name} ${c.arguments}`), ...turn.results.map(r => `${r.error} ${r.text}`),
      k ? "" : `${agent.name} ${agent.prompt}`, k === agent.turns.length - 1 ? agent.message : "",
    ].join("\n").toLowerCase()));
    return this.texts;
  }

  search(query) {
    this.query = query;
    const wanted = query.trim().toLowerCase(), agents = this.episode.agents;
    this.hits = [];
    this.hit = -1;
    if (!wanted) {
      this.scene.matches = null;
      this.ui.found.textContent = "";
      return this.scene.request();
    }
    const texts = this.haystack();
    this.scene.matches = agents.map((agent, a) => agent.turns.map((turn, k) => {
      const yes = agent.id === wanted || agent.name.toLowerCase() === wanted || (wanted === "is:error" ? turn.malformed || turn.results.some(r => r.error) : texts[a][k].includes(wanted));
      if (yes) this.hits.push([a, k]);
      return yes ? 1 : 0;
    }));
    this.ui.found.textContent = this.hits.length ? plural(this.hits.length, "turn") : "nothing found";
    this.scene.request();
  }

  step(by) {
    if (!this.hits.length) return;
    this.hit = this.hit < 0 ? (by > 0 ? 0 : this.hits.length - 1) : (this.hit + by + this.hits.length) % this.hits.length;
    this.ui.found.textContent = `${this.hit + 1} of ${this.hits.length}`;
    this.choose(...this.hits[this.hit], { reveal: true, quiet: true });
  }

  // ---------------------------------------------------------------- keys

  neighbour(by) {
    const { selected, order, rowOf, lanes } = this.scene;
    if (!selected) return this.choose(0, 0, { reveal: true, quiet: true });
    const agent = order[rowOf[selected.agent] + by];
    if (agent === undefined) return;
    const from = lanes[selected.agent].from[selected.turn] ?? 0, starts = lanes[agent].from;
    const k = starts.reduce((best, start, i) => Math.abs(start - from) < Math.abs(starts[best] - from) ? i : best, 0);
    this.choose(agent, starts.length ? k : -1, { reveal: true, quiet: true });
  }

  turnBy(by) {
    const chosen = this.scene.selected;
    if (!chosen) return this.choose(0, 0, { reveal: true, quiet: true });
    if (chosen.turn + by in this.episode.agents[chosen.agent].turns) this.choose(chosen.agent, chosen.turn + by, { reveal: true, quiet: true });
  }

  alongPath(by) {
    const chosen = this.scene.selected, path = [];
    this.scene.lanes.forEach((lane, a) => lane.critical.forEach((yes, k) => { if (yes) path.push([lane.from[k], a, k]); }));
    path.sort((x, y) => x[0] - y[0]);
    const from = chosen ? this.scene.lanes[chosen.agent].from[chosen.turn] ?? 0 : -1, ahead = path.filter(([start]) => by > 0 ? start > from : start < from);
    const next = by > 0 ? ahead[0] : ahead.at(-1);
    if (next) this.choose(next[1], next[2], { reveal: true, quiet: true });
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const scene = this.scene, chosen = scene.selected, parent = chosen && this.episode.agents[chosen.agent];
    const actions = {
      ArrowLeft: () => this.turnBy(-1), ArrowRight: () => this.turnBy(1), ArrowUp: () => this.neighbour(-1), ArrowDown: () => this.neighbour(1),
      "+": () => scene.zoom(1.5), "=": () => scene.zoom(1.5), "-": () => scene.zoom(1 / 1.5), 0: () => scene.fit(), c: () => this.alongPath(1), C: () => this.alongPath(-1),
      t: () => this.setMode(scene.mode === "step" ? "time" : "step"), "/": () => this.ui.search.focus(), n: () => this.step(1), N: () => this.step(-1),
      Escape: () => this.choose(null), Enter: () => this.ui.body.focus(), u: () => parent && parent.parent !== null && this.choose(parent.parent, parent.parent_turn, { reveal: true, quiet: true }),
    };
    const pans = { ArrowLeft: [120, 0], ArrowRight: [-120, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] };
    const action = event.shiftKey && pans[event.key] ? () => scene.pan(...pans[event.key]) : actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  // ---------------------------------------------------------------- pointer

  listen() {
    const { canvas, select, order, search, body } = this.ui, local = event => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    body.setAttribute("tabindex", 0);
    body.setAttribute("role", "region");
    body.setAttribute("aria-label", "Turn");
    select.addEventListener("change", () => {
      history.pushState(null, "", `#${address(DATA.episodes[+select.value].id)}`);
      this.open(+select.value);
    });
    order.addEventListener("change", () => { this.scene.setOrder(order.value); this.scene.request(); });
    let timer = 0;
    search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => this.search(search.value), 120); });
    search.addEventListener("keydown", event => { if (event.key === "Enter") { event.preventDefault(); if (search.value !== this.query) this.search(search.value); this.step(event.shiftKey ? -1 : 1); } });
    canvas.addEventListener("keydown", event => this.key(event));
    canvas.addEventListener("wheel", event => this.wheel(event, local(event)), { passive: false });
    canvas.addEventListener("pointerdown", event => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, local(event));
      this.moved = 0;
      hideTip();
    });
    canvas.addEventListener("pointermove", event => this.move(event, local(event)));
    canvas.addEventListener("pointerup", event => {
      const click = this.pointers.size === 1 && this.moved < 5;
      this.pointers.delete(event.pointerId);
      if (click) this.click(...local(event));
    });
    for (const name of ["pointercancel", "pointerleave"]) canvas.addEventListener(name, event => { if (name === "pointercancel" || !event.buttons) this.pointers.delete(event.pointerId); hideTip(); });
  }

  click(px, py) {
    if (py < STRIP) {
      this.scene.view.x = (px - this.scene.left) / this.scene.plotWidth * this.scene.span - this.scene.plotWidth / this.scene.view.kx / 2;
      return this.scene.clamp();
    }
    const hit = this.scene.pick(px, py);
    if (!hit) return;
    this.choose(hit.agent, hit.turn);
    if (innerWidth < 1000) this.panel.firstChild.scrollIntoView({ block: "nearest", behavior: "smooth" });  // the turn is below the picture
  }

  wheel(event, [px, py]) {
    const unit = event.deltaMode === 1 ? 16 : 1, dx = (event.shiftKey ? event.deltaY || event.deltaX : event.deltaX) * unit, dy = (event.shiftKey ? 0 : event.deltaY) * unit;
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      this.scene.zoom(Math.exp(-Math.max(-60, Math.min(60, event.deltaY * unit)) * 0.008), px, py);
    } else if (this.scene.pan(-dx, -dy)) event.preventDefault();  // at its end the page scrolls on
    hideTip();
  }

  move(event, [px, py]) {
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      const hit = event.pointerType === "mouse" && this.scene.pick(px, py);
      this.ui.canvas.style.cursor = hit ? "pointer" : "grab";
      if (hit && (hit.turn >= 0 || px < this.scene.left)) showTip(event.clientX, event.clientY, ...turnGlance(this.episode, hit)); else hideTip();
      return;
    }
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    if (others.length) {
      const far = (a, b) => Math.max(20, Math.hypot(a[0] - b[0], a[1] - b[1]));
      this.scene.zoom(far(others[0], [px, py]) / far(others[0], before), (px + others[0][0]) / 2, (py + others[0][1]) / 2);
      this.moved = 99;
    } else {
      this.moved += Math.abs(px - before[0]) + Math.abs(py - before[1]);
      if (this.moved >= 5) this.scene.pan(px - before[0], py - before[1]);
    }
    this.pointers.set(event.pointerId, [px, py]);
  }
}

// An episode's name in the address: as it is written everywhere else.
function address(name) {
  return encodeURIComponent(name).replaceAll("%3A", ":");
}

// A part of the address as it was before it was encoded; a damaged one as it stands.
function readable(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}

const swarmSection = document.getElementById("swarm");
const viewer = swarmSection ? new Viewer(swarmSection) : null;
