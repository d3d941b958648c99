"use strict";
// The picture of one episode on a canvas: a lane per agent, a bar per turn. It draws what is visible and nothing else.
// A view maps data to pixels: x is the step or second at the plot's left edge, kx pixels a step or second; y is how many
// pixels of lanes lie above the plot's top, lane the height of one.

const STRIP = 44, AXIS = 36, MAX_LANE = 26;
const COLORS = ["card", "ink", "soft", "line", "grid", "band", "trained", "critical", "critical-wait", "bar", "wait", "bad", "fault", "on-bar"];

class Scene {
  constructor(canvas) {
    this.canvas = canvas;
    this.ctx = canvas.getContext("2d");
    this.mode = "step";
    this.view = { x: 0, kx: 1, y: 0, lane: MAX_LANE };
    this.selected = null;
    this.matches = null;
    this.frame = 0;
    this.readColors();
  }

  readColors() {
    const style = getComputedStyle(document.documentElement);
    this.color = Object.fromEntries(COLORS.map(name => [name, style.getPropertyValue(`--${name}`).trim()]));
  }

  show(episode) {
    this.episode = episode;
    this.selected = this.matches = null;
    this.setOrder("launch");
    this.setMode(this.mode);
  }

  // ---------------------------------------------------------------- data to positions

  setMode(mode) {
    this.mode = mode;
    const byStep = mode === "step", path = byStep ? 0 : 1;
    this.lanes = this.episode.agents.map(agent => ({
      from: agent.turns.map(t => byStep ? t.column : t.t[0]),
      model: agent.turns.map(t => byStep ? t.column + 1 : t.t[1]),
      to: agent.turns.map(t => byStep ? t.column + 1 : t.t[2]),
      critical: agent.turns.map(t => t.critical[path] === 1),
    }));
    this.span = Math.max(byStep ? 1 : 1e-3, ...this.lanes.map(lane => lane.to.length ? lane.to[lane.to.length - 1] : 0));
    this.groups = this.spawnGroups();
    this.profile = this.busyAgents();
    this.fit();
  }

  // What each turn launched: where it leaves the parent's lane, where it returns, and whom it leads to.
  spawnGroups() {
    const groups = new Map(), byStep = this.mode === "step";
    for (const [parent, turn, child] of this.episode.spawns) {
      const key = parent * 1e6 + turn;
      if (!groups.has(key)) groups.set(key, { parent, turn, children: [] });
      if (this.lanes[child].from.length) groups.get(key).children.push(child);
    }
    for (const group of groups.values()) {
      const lane = this.lanes[group.parent];
      group.out = lane.model[group.turn];
      const last = Math.max(group.out, ...group.children.map(child => this.lanes[child].to.at(-1)));
      group.back = byStep ? lane.from[group.turn + 1] ?? last : Math.max(lane.to[group.turn], last);
      group.critical = group.children.filter(child => lane.critical[group.turn] && this.lanes[child].critical[0]);
    }
    return [...groups.values()].filter(group => group.children.length);
  }

  // How many agents are at work, in bins over the whole episode, and the most at once. Waiting for sub-agents is no work.
  busyAgents() {
    const bins = this.mode === "step" ? Math.min(this.span, 600) : 400, counts = new Float64Array(bins), changes = [];
    this.lanes.forEach((lane, agent) => {
      let next = 0;  // an agent counts once in a bin
      lane.from.forEach((from, k) => {
        const end = this.episode.agents[agent].turns[k].spawned.length ? lane.model[k] : lane.to[k];
        const first = Math.max(next, Math.floor(from / this.span * bins)), last = Math.min(bins, Math.ceil(end / this.span * bins));
        for (let bin = first; bin < last; bin++) counts[bin]++;
        next = Math.max(next, last);
        changes.push([from, 1], [end, -1]);
      });
    });
    changes.sort((x, y) => x[0] - y[0] || x[1] - y[1]);
    this.mostBusy = 0;
    let busy = 0;
    for (const [, change] of changes) this.mostBusy = Math.max(this.mostBusy, busy += change);
    return counts;
  }

  setOrder(order) {
    const agents = this.episode.agents, length = a => a.turns.length ? a.turns.at(-1).t[2] - a.turns[0].t[0] : 0;
    this.order = agents.map((_, i) => i);
    if (order === "steps") this.order.sort((a, b) => (a !== 0) - (b !== 0) || agents[b].turns.length - agents[a].turns.length || a - b);
    if (order === "seconds") this.order.sort((a, b) => (a !== 0) - (b !== 0) || length(agents[b]) - length(agents[a]) || a - b);
    this.rowOf = new Int32Array(agents.length);
    this.order.forEach((agent, row) => { this.rowOf[agent] = row; });
  }

  // ---------------------------------------------------------------- the view

  resize(width, height) {
    const ratio = window.devicePixelRatio || 1, whole = !this.width || this.isFitted();
    this.width = width;
    this.height = height;
    this.left = width < 560 ? 92 : 156;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.height = `${height}px`;
    this.ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (whole) this.fit(); else this.clamp();
  }

  get plotWidth() { return this.width - this.left - 12; }
  get plotHeight() { return this.height - STRIP - AXIS; }
  get fitKx() { return this.plotWidth / this.span; }
  get fitLane() { return Math.min(MAX_LANE, this.plotHeight / this.order.length); }
  get maxKx() { return Math.max(this.fitKx, this.mode === "step" ? 160 : Math.max(400, this.fitKx * 2000)); }
  isFitted() { return this.view.kx <= this.fitKx * 1.001 && this.view.lane <= this.fitLane * 1.001; }
  overflowsDown() { return this.order.length * this.view.lane > this.plotHeight + 1; }

  fit() {
    if (!this.width || !this.episode) return;
    this.view = { x: 0, kx: this.fitKx, y: 0, lane: this.fitLane };
    this.request();
  }

  clamp() {
    const view = this.view;
    view.kx = Math.min(this.maxKx, Math.max(this.fitKx, view.kx));
    view.lane = Math.min(MAX_LANE, Math.max(this.fitLane, view.lane));
    view.x = Math.max(0, Math.min(view.x, this.span - this.plotWidth / view.kx));
    view.y = Math.max(0, Math.min(view.y, this.order.length * view.lane - this.plotHeight));
    this.request();
  }

  // Moves the picture by pixels; false if it was at its end already.
  pan(dx, dy) {
    const { x, y } = this.view;
    this.view.x -= dx / this.view.kx;
    this.view.y -= dy;
    this.clamp();
    return Math.abs(this.view.x - x) * this.view.kx > 0.01 || Math.abs(this.view.y - y) > 0.01;
  }

  zoom(factor, px = this.left + this.plotWidth / 2, py = STRIP + this.plotHeight / 2) {
    const view = this.view, x = view.x + (px - this.left) / view.kx, row = (py - STRIP + view.y) / view.lane;
    view.kx *= factor;
    view.lane *= factor;
    view.kx = Math.min(this.maxKx, Math.max(this.fitKx, view.kx));
    view.lane = Math.min(MAX_LANE, Math.max(this.fitLane, view.lane));
    view.x = x - (px - this.left) / view.kx;
    view.y = row * view.lane - (py - STRIP);
    this.clamp();
  }

  X(value) { return this.left + (value - this.view.x) * this.view.kx; }
  Y(row) { return STRIP + row * this.view.lane - this.view.y; }

  // Brings a turn into the picture, large enough to be seen.
  reveal(agent, turn) {
    const view = this.view, lane = this.lanes[agent], row = this.rowOf[agent];
    if (view.lane < 12) { view.lane = Math.min(MAX_LANE, 18); view.y = row * view.lane - this.plotHeight / 2; }
    const y = this.Y(row);
    if (y < STRIP || y + view.lane > STRIP + this.plotHeight) view.y = (row + 0.5) * view.lane - this.plotHeight / 2;
    if (turn in lane.from) {
      const wanted = Math.min(this.maxKx, 10 / (lane.to[turn] - lane.from[turn] || 1));
      if (view.kx < wanted && this.episode.agents.length > 60) view.kx = wanted;
      const a = this.X(lane.from[turn]), b = this.X(lane.to[turn]);
      if (a < this.left || b > this.width - 12) view.x = lane.from[turn] - this.plotWidth / view.kx / 3;
    }
    this.clamp();
  }

  // The turn under a point, as {agent, turn}; turn -1 beside the bars of a lane; null outside the lanes.
  pick(px, py) {
    if (py < STRIP || py > STRIP + this.plotHeight) return null;
    const row = Math.floor((py - STRIP + this.view.y) / this.view.lane), agent = this.order[row];
    if (agent === undefined) return null;
    if (px < this.left) return { agent, turn: -1 };
    const lane = this.lanes[agent], value = this.view.x + (px - this.left) / this.view.kx, near = 3 / this.view.kx;
    const k = firstAfter(lane.to, value - near);
    return { agent, turn: k < lane.from.length && lane.from[k] <= value + near ? k : -1 };
  }

  // ---------------------------------------------------------------- drawing

  request() {
    if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; this.draw(); });
  }

  draw() {
    if (!this.width || !this.episode) return;
    const { ctx, view, color } = this;
    ctx.clearRect(0, 0, this.width, this.height);
    ctx.font = "11.5px system-ui, sans-serif";
    ctx.textBaseline = "middle";
    const first = Math.max(0, Math.floor(view.y / view.lane));
    const last = Math.min(this.order.length - 1, Math.floor((view.y + this.plotHeight) / view.lane));
    this.drawStrip();
    this.drawAxis();
    ctx.save();
    ctx.beginPath();
    ctx.rect(this.left - 2, STRIP, this.width - this.left + 2, this.plotHeight);
    ctx.clip();
    this.drawSelectedLane();
    this.drawEdges(first, last);
    for (const critical of [false, true]) this.drawBars(first, last, critical);
    ctx.restore();
    this.drawNames(first, last);
    ctx.fillStyle = color.line;
    ctx.fillRect(this.left - 2, STRIP, this.width - this.left - 10, 1);
  }

  drawStrip() {
    const { ctx, color, profile } = this, most = Math.max(1, ...profile), width = this.plotWidth / profile.length;
    const top = 14, height = STRIP - top - 6;
    ctx.fillStyle = color.bar;
    for (let i = 0; i < profile.length; i++) {
      const h = profile[i] / most * height;
      ctx.fillRect(this.left + i * width, top + height - h, Math.max(1, width - (width > 4 ? 1 : 0)), h);
    }
    ctx.fillStyle = color.soft;
    ctx.textAlign = "right";
    ctx.fillText(this.width < 560 ? `busy: ${this.mostBusy}` : `busy agents: ${this.mostBusy}`, this.left - 10, top + height / 2);
    if (this.view.kx > this.fitKx * 1.001) {
      const a = this.left + this.view.x / this.span * this.plotWidth, w = this.plotWidth / this.view.kx / this.span * this.plotWidth;
      ctx.fillStyle = color.critical;
      ctx.fillRect(a, STRIP - 5, Math.max(6, w), 3);
    }
  }

  drawAxis() {
    const { ctx, color, view } = this, bottom = STRIP + this.plotHeight, end = view.x + this.plotWidth / view.kx;
    ctx.textAlign = "center";
    for (const v of ticks(view.x, end, Math.max(3, Math.floor(this.plotWidth / 90)))) {
      if (this.mode === "step" && !Number.isInteger(v)) continue;
      ctx.fillStyle = color.grid;
      ctx.fillRect(this.X(v), STRIP, 1, this.plotHeight + 4);
      ctx.fillStyle = color.soft;
      ctx.fillText(String(+v.toPrecision(6)), this.X(v), bottom + 11);
    }
    ctx.fillStyle = color.soft;
    ctx.fillText(this.mode === "step" ? "critical steps" : "seconds since the episode began", this.left + this.plotWidth / 2, bottom + 27);
  }

  drawSelectedLane() {
    if (!this.selected) return;
    this.ctx.fillStyle = this.color.band;
    this.ctx.fillRect(this.left - 2, this.Y(this.rowOf[this.selected.agent]), this.width, this.view.lane);
  }

  drawEdges(first, last) {
    const { ctx, color, view } = this, right = view.x + this.plotWidth / view.kx, half = view.lane / 2;
    const thin = new Path2D(), dotted = new Path2D(), strong = new Path2D();
    for (const group of this.groups) {
      if (group.out > right || group.back < view.x) continue;
      const from = this.rowOf[group.parent], out = this.X(group.out), back = this.X(group.back), y = this.Y(from) + half;
      let top = from, bottom = from;
      for (const child of group.children) {
        const row = this.rowOf[child];
        if (row < top) top = row; else if (row > bottom) bottom = row;
        if (view.lane < 5 || row < first || row > last) continue;
        const lane = this.lanes[child], at = this.Y(row) + half, done = this.X(lane.to.at(-1));
        thin.moveTo(out, at);
        thin.lineTo(this.X(lane.from[0]), at);
        if (back - done > 2) { dotted.moveTo(done, at); dotted.lineTo(back, at); }
      }
      for (const x of [out, back]) {
        thin.moveTo(x, Math.max(STRIP - 9, this.Y(top) + half));
        thin.lineTo(x, Math.min(this.height, this.Y(bottom) + half));
      }
      for (const child of group.critical) {
        const lane = this.lanes[child], at = this.Y(this.rowOf[child]) + half;
        strong.moveTo(out, y); strong.lineTo(out, at); strong.lineTo(this.X(lane.from[0]), at);
        strong.moveTo(this.X(lane.to.at(-1)), at); strong.lineTo(back, at); strong.lineTo(back, y);
      }
    }
    ctx.lineWidth = 1;
    ctx.strokeStyle = color.bar;
    ctx.stroke(thin);
    ctx.setLineDash([2, 4]);
    ctx.stroke(dotted);
    ctx.setLineDash([]);
    ctx.lineWidth = 2;
    ctx.strokeStyle = color.critical;
    ctx.stroke(strong);
  }

  drawBars(first, last, critical) {
    const { ctx, color, view } = this, right = view.x + this.plotWidth / view.kx, byStep = this.mode === "step";
    const dense = view.lane < 5;  // too low for details
    const thick = view.lane > 12 ? view.lane - 8 : Math.max(1, view.lane * (dense ? 0.9 : 0.75)), inset = (view.lane - thick) / 2;
    for (let row = first; row <= last; row++) {
      const index = this.order[row], lane = this.lanes[index], turns = this.episode.agents[index].turns, y = this.Y(row) + inset;
      const hits = this.matches && this.matches[index];
      for (let k = firstAfter(lane.to, view.x); k < turns.length && lane.from[k] <= right; k++) {
        if (lane.critical[k] !== critical) continue;
        const turn = turns[k], a = this.X(lane.from[k]), b = this.X(lane.to[k]), gap = b - a > 5 && !dense ? 1 : 0;
        ctx.globalAlpha = this.matches && !hits[k] ? 0.25 : 1;
        if (!byStep && !dense) {
          ctx.fillStyle = critical ? color["critical-wait"] : color.wait;
          ctx.fillRect(a + gap, y, Math.max(1, b - a - gap), thick);
        }
        ctx.fillStyle = turn.malformed ? color.fault : critical ? color.critical : this.matches && hits[k] ? color.trained : color.bar;
        const solid = dense && !turn.spawned.length ? b : this.X(lane.model[k]);
        ctx.fillRect(a + gap, y, Math.max(1, solid - a - gap), thick);
        if (thick > 6 && b - a > 4 && turn.results.some(result => result.error)) {
          ctx.fillStyle = color.fault;
          ctx.fillRect(a + gap, y + thick - 3, Math.max(2, b - a - 2 * gap), 3);
        }
        const strong = critical || turn.malformed || (this.matches && hits[k]);
        if (thick > 12 && solid - a > 26) this.drawInside(turn, strong, a + 5, y + thick / 2, solid - a - 8);
        ctx.globalAlpha = 1;
        if (this.selected && this.selected.agent === index && this.selected.turn === k) {
          ctx.lineWidth = 2;
          ctx.strokeStyle = color.ink;
          ctx.strokeRect(a - 1, y - 2, Math.max(3, b - a) + 2, thick + 4);
        }
      }
    }
  }

  // What a turn did, as far as there is room for it.
  drawInside(turn, strong, x, y, room) {
    const name = turn.calls.length ? turn.calls[0].name : turn.malformed ? "malformed" : "answer";
    const launched = turn.spawned.length ? `+${turn.spawned.length}` : "";
    const text = [launched || name, name, `${name} ${launched}`].filter(t => t.length * 6.4 < room).pop();
    if (!text) return;
    this.ctx.fillStyle = strong ? this.color["on-bar"] : this.color.ink;
    this.ctx.textAlign = "left";
    this.ctx.fillText(text, x, y + 0.5);
  }

  // Names of lanes; where lanes are lower than letters, those that matter most and as many others as fit.
  drawNames(first, last) {
    const { ctx, color, view } = this, room = Math.floor((this.left - 14) / 6.4), rows = [];
    for (let row = first; row <= last; row++) {
      const index = this.order[row], chosen = this.selected && this.selected.agent === index;
      rows.push({ row, index, rank: chosen ? 0 : index === 0 ? 1 : this.lanes[index].critical.includes(true) ? 2 : 3 });
    }
    if (view.lane < 13) rows.sort((a, b) => a.rank - b.rank);
    const taken = [];
    ctx.textAlign = "right";
    for (const { row, index, rank } of rows) {
      const middle = this.Y(row) + view.lane / 2, bottom = STRIP + this.plotHeight;
      const edge = view.lane < 13 ? 0 : 6;
      if (middle < STRIP + edge || middle > bottom - edge) continue;
      const y = Math.min(bottom - 6, Math.max(STRIP + 7, middle));
      if (view.lane < 13 && taken.some(other => Math.abs(other - y) < 14)) continue;
      taken.push(y);
      const agent = this.episode.agents[index], label = agentName(agent);
      ctx.font = `${rank < 3 ? "600 " : ""}11.5px system-ui, sans-serif`;
      ctx.fillStyle = index && agent.status !== "finished" ? color.bad : rank < 3 ? color.ink : color.soft;
      ctx.fillText(label.length > room ? label.slice(0, room - 1) + "…" : label, this.left - 10, y);
    }
  }
}

// Position of the first element of a sorted array that is greater than value.
function firstAfter(sorted, value) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] > value) high = middle; else low = middle + 1;
  }
  return low;
}
