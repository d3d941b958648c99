"use strict";
// The words beside the picture: one turn in full, and what each stage of the episode cost.

const SHOWN_CALLS = 12, SHOWN_TOKENS = 1500, SHOWN_CHARS = 1500;

const block = (label, text, bad) => [el("h4", {}, label), words(text, bad ? "bad" : "")];

// Text as it is, the end of a long one behind a button.
function words(text, kind = "") {
  const node = el("pre", { class: kind }, text.slice(0, SHOWN_CHARS));
  if (text.length > SHOWN_CHARS * 1.2) {
    const more = button(`show all ${format(text.length)} characters`, () => { node.textContent = text; }, { class: "link" });
    node.append("…\n", more);
  } else node.textContent = text;
  return node;
}

function button(label, action, attributes = {}) {
  const node = el("button", { type: "button", ...attributes }, label);
  node.addEventListener("click", action);
  return node;
}

function turnHead(agent, k) {
  return k < 0 ? agentName(agent) : `${agentName(agent)} · turn ${k + 1} of ${agent.turns.length}`;
}

function turnFacts(turn) {
  const facts = [`${seconds(turn.t[1] - turn.t[0])} in the model`, `${plural(turn.tokens, "token")}`];
  if (turn.t[2] > turn.t[1]) facts.push(`${seconds(turn.t[2] - turn.t[1])} ${turn.spawned.length ? "waiting for sub-agents" : "in tools"}`);
  facts.push(`began at ${seconds(turn.t[0])}`);
  if (turn.version >= 0) facts.push(`policy version ${turn.version}`);
  return facts.join(" · ");
}

function pathWords(turn) {
  const [bySteps, byTime] = turn.critical;
  if (!bySteps && !byTime) return "Not on the critical path: making it faster would not end the episode sooner.";
  return `On the critical path ${bySteps && byTime ? "by steps and by time" : bySteps ? "by steps, not by time" : "by time, not by steps"}.`;
}

// A glance, for the pointer.
function turnGlance(episode, { agent: a, turn: k }) {
  const agent = episode.agents[a], turn = agent.turns[k], parts = [el("b", {}, turnHead(agent, k))];
  if (!turn) return [...parts, el("div", {}, `${agent.status} after ${plural(agent.turns.length, "turn")}`), el("pre", {}, agent.prompt.slice(0, 300))];
  parts.push(el("div", { class: "figures" }, turnFacts(turn)));
  const calls = turn.calls.slice(0, 4).map(call => `${call.name}(${call.arguments.slice(0, 120)})`);
  if (turn.calls.length > 4) calls.push(`… and ${turn.calls.length - 4} more calls`);
  const text = [turn.text.slice(0, 300), ...calls].filter(Boolean).join("\n");
  if (text) parts.push(el("pre", {}, text));
  if (turn.malformed) parts.push(el("pre", { class: "bad" }, turn.malformed));
  return parts;
}

// The whole turn. go(agent, turn) leads elsewhere.
function turnDetails(episode, { agent: a, turn: k }, go) {
  const agent = episode.agents[a], turn = agent.turns[k], parts = [];
  if (!turn) {
    parts.push(el("p", { class: "figures" }, `${agent.status} after ${plural(agent.turns.length, "turn")}`));
    if (agent.prompt) parts.push(...block("Asked", agent.prompt));
    return parts;
  }
  parts.push(el("p", { class: "figures" }, turnFacts(turn)), el("p", { class: "figures" }, pathWords(turn)));
  if (k === 0 && agent.prompt) parts.push(...block("Asked", agent.prompt));
  if (turn.text) parts.push(...block(turn.calls.length ? "Wrote" : "Answered", turn.text));
  if (turn.malformed) parts.push(...block("Malformed", turn.malformed, true));
  parts.push(callList(episode, turn, go));
  if (a && k === agent.turns.length - 1 && agent.message && agent.message !== turn.text) parts.push(...block("Returned", agent.message));
  if (a && k === agent.turns.length - 1 && agent.status !== "finished") parts.push(...block("Ended", agent.status, true));
  if (!a && k === agent.turns.length - 1) parts.push(...endOfEpisode(episode));
  parts.push(...tokenList(episode, turn));
  return parts;
}

function callList(episode, turn, go) {
  const list = el("div");
  const add = (from, to) => {
    for (let i = from; i < Math.min(to, turn.calls.length); i++) {
      const call = turn.calls[i], result = turn.results[i];
      list.append(el("h4", {}, call.name), words(call.arguments));
      if (call.child !== null) {
        const child = episode.agents[call.child];
        list.append(button(`${agentName(child)}: ${plural(child.turns.length, "turn")}, ${child.status} →`, () => go(call.child, 0), { class: "jump" }));
      }
      if (result) list.append(words((result.error ? `[${result.error}] ` : "") + result.text, result.error ? "result bad" : "result"));
    }
  };
  add(0, SHOWN_CALLS);
  if (turn.calls.length > SHOWN_CALLS) {
    const more = button(`show all ${turn.calls.length} calls`, () => { more.remove(); add(SHOWN_CALLS, turn.calls.length); }, { class: "jump" });
    return el("div", {}, list, more);
  }
  return list;
}

function endOfEpisode(episode) {
  const parts = [];
  if (episode.error) parts.push(...block("Failed", episode.error, true));
  if (episode.limit) parts.push(...block("Stopped by", `the budget of ${episode.limit.replaceAll("_", " ")}`, true));
  const rows = Object.entries(episode.rewards).map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, format(value))));
  if (rows.length) parts.push(el("h4", {}, "Rewards (parts unweighted, total weighted)"), el("table", { class: "small" }, el("tbody", {}, ...rows)));
  return parts;
}

function tokenList(episode, turn) {
  const tokens = turnTokens(episode, turn);
  if (!tokens.length) return [];
  const mean = tokens.reduce((sum, token) => sum + token.logprob, 0) / tokens.length;
  const least = [...tokens].sort((x, y) => x.logprob - y.logprob).slice(0, 3);
  const box = el("details", { class: "tokens" }, el("summary", {}, `Tokens with log-probs (${tokens.length}), mean ${format(mean)}`));
  box.addEventListener("toggle", () => {
    if (!box.open || box.dataset.filled) return;
    box.dataset.filled = "yes";
    const line = el("div", { class: "stream" });
    for (const token of tokens.slice(0, SHOWN_TOKENS)) {
      const unlikely = Math.round(55 * (1 - Math.exp(token.logprob)));
      line.append(el("span", { style: `--p: ${unlikely}%`, title: `id ${token.id} · log-prob ${format(token.logprob)} · probability ${format(Math.exp(token.logprob))}` },
        token.text.replaceAll("\n", "⏎\n")));
    }
    box.append(el("p", { class: "figures" }, "Least likely: " + least.map(t => `${JSON.stringify(t.text)} ${format(t.logprob)}`).join(", ") + ". The darker, the less likely; hover for numbers."), line);
    if (tokens.length > SHOWN_TOKENS) box.append(el("p", { class: "figures" }, `… and ${tokens.length - SHOWN_TOKENS} more`));
  });
  return [box];
}

// ---------------------------------------------------------------- the episode as a whole

function episodeFigures(episode) {
  const parts = [["episode", episode.id], ["critical steps", episode.critical_steps], ["total steps", episode.total_steps], ["sub-agents", episode.agents.length - 1],
    ["seconds", format(episode.wall_s || episode.makespan)]];
  if (episode.oracle) parts.push(["best possible steps", episode.oracle.parallel], ["one agent alone", episode.oracle.serial]);
  for (const name of ["perf", "total"]) if (name in episode.rewards) parts.push([name === "perf" ? "r_perf" : "reward", format(episode.rewards[name])]);
  const line = el("p", { class: "figures" });
  parts.forEach(([name, value], i) => line.append(i ? " · " : "", `${name} `, el("b", {}, String(value))));
  if (episode.status !== "answered") line.append(" · ", el("b", { class: "bad" }, `${episode.status.replaceAll("_", " ")} ${episode.limit.replaceAll("_", " ")}`));
  return line;
}

// The stage that cost most in a sentence, and the agent to look at.
function diagnosis(episode, mode) {
  const byStep = mode === "step", stages = episode.stages, cost = stage => byStep ? stage.steps : stage.seconds;
  if (!stages.length) return { text: "The orchestrator took no turn." };
  const worst = stages.reduce((best, stage, i) => cost(stage) > cost(stages[best]) ? i : best, 0), stage = stages[worst];
  const all = stages.reduce((sum, each) => sum + cost(each), 0), say = n => byStep ? plural(n, "step") : seconds(n);
  const share = byStep ? `${stage.steps} of ${all} critical steps` : `${seconds(stage.seconds)} of ${seconds(all)}`;
  if (!stage.subagents) {
    return { text: byStep ? `One turn after the other, no step is shared: ${plural(all, "turn")} of the orchestrator.` : `The longest turn of the orchestrator is turn ${worst + 1}, which works alone: ${share}.` };
  }
  const agent = byStep ? stage.longest : stage.longest_s, turns = episode.agents[agent].turns, start = `Most goes into the orchestrator's turn ${worst + 1}: ${share}.`;
  const most = byStep ? stage.steps - 1 : turns.length ? turns.at(-1).t[2] - turns[0].t[0] : 0, middle = byStep ? stage.median : stage.median_s;
  if (stage.subagents > 1 && most < 1.2 * middle) return { text: `${start} None of its ${stage.subagents} sub-agents stands out: the longest took ${say(most)}, the median ${say(middle)}.`, agent };
  const others = stage.subagents > 1 ? `; the median of its ${stage.subagents} sub-agents took ${say(middle)}` : "";
  return { text: `${start} It waits for ${agentName(episode.agents[agent])}, which took ${say(most)}${others}.`, agent };
}

// Model, tools and neither, along the path by time.
function timeSplit(episode) {
  let model = 0, tools = 0, end = 0;
  for (const agent of episode.agents) for (const turn of agent.turns) {
    end = Math.max(end, turn.t[2]);
    if (!turn.critical[1]) continue;
    model += turn.t[1] - turn.t[0];
    if (!turn.spawned.length) tools += turn.t[2] - turn.t[1];
  }
  const rest = Math.max(0, (episode.wall_s || end) - model - tools);
  return `Along the critical path by time: ${seconds(model)} in the model, ${seconds(tools)} in tools, ${seconds(rest)} neither (between turns, start and end).`;
}

function stageTable(episode, go) {
  const head = ["turn", "steps", "seconds", "did", "sub-agents", "longest", "median"].map(name => el("th", { scope: "col" }, name));
  const rows = episode.stages.map((stage, k) => {
    const turn = episode.agents[0].turns[k], names = [...new Set(turn.calls.map(call => call.name))].join(", ") || (turn.malformed ? "malformed" : "answer");
    const longest = stage.longest === null ? "–" : button(`${agentName(episode.agents[stage.longest])}: ${stage.steps - 1}`, () => go(stage.longest, 0), { class: "link" });
    return el("tr", {}, el("th", { scope: "row" }, button(String(k + 1), () => go(0, k), { class: "link", "aria-label": `turn ${k + 1}` })), el("td", {}, stage.steps), el("td", {}, seconds(stage.seconds)),
      el("td", {}, names), el("td", {}, stage.subagents || "–"), el("td", {}, longest), el("td", {}, stage.subagents ? format(stage.median) : "–"));
  });
  const note = "Steps: one for the orchestrator's turn and those of its longest sub-agent; longest and median are counted in steps.";
  return el("details", { class: "stages" }, el("summary", {}, `What each turn of the orchestrator cost (${episode.stages.length})`),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "cost of each turn" }, el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows))), el("p", { class: "figures" }, note));
}
