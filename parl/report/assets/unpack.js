"use strict";
// Reads an episode as parl/report/pack.py packs it. Nothing is unpacked before it is looked at.

async function unpackEpisode(index) {
  const text = document.getElementById(`episode-${index}`).textContent;
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const episode = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  episode.tokenPlaces = new Uint32Array(buffer, 4 + length, episode.n_tokens);
  episode.tokenCosts = new Uint16Array(buffer, 4 + length + 4 * episode.n_tokens, episode.n_tokens);
  return Object.assign(episode, DATA.episodes[index]);
}

// Ids, texts and log-probs of a turn's sampled tokens; empty where the page holds none.
function turnTokens(episode, turn) {
  return Array.from({ length: turn.held }, (_, i) => {
    const at = turn.first + i, [id, text] = episode.vocab[episode.tokenPlaces[at]];
    return { id, text: text || `[${id}]`, logprob: -episode.tokenCosts[at] / 1000 };
  });
}

// What an agent is called on the page: its id, and the configuration that it was made from.
function agentName(agent) {
  if (agent.parent === null) return "orchestrator";
  return agent.name ? `${agent.id} ${agent.name}` : agent.id;
}
