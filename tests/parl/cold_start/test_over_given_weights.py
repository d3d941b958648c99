"""A cold start over given weights: what is imitated, when it is enough, and that a killed one goes on."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import random_weights, tiny_config, tiny_model

from envs.base import Role
from model.chat.kimi import KimiChat
from model.decoder import Weights
from model.hf.family import Hf
from model.kimi.family import Kimi
from model.policy_files import load_policy, save_policy
from model.tokenizer.tokenizer import Tokenizer
from parl.cold_start.conversations import Conversation, conversation_row, read_conversations
from parl.cold_start.demos import Demonstrator
from parl.cold_start.imitation import fine_tuning_rate, run_sft
from parl.cold_start.rows import RecordedWorker
from parl.cold_start.shipped import Recipe, cold_start_folder, cold_start_hash
from parl.collect.free_running import free_running
from parl.config.load import load_config
from parl.config.schema import Config
from parl.episodes.formats.common import messages
from parl.errors import UserError
from parl.serve.gguf import Gguf
from parl.serve.pretrained import write_llama
from rewards.score import score_episode
from rollouts.episode import Episode
from rollouts.prompts import PromptsConfig
from rollouts.store.store import EpisodeStore

ROOT = Path(__file__).parents[3]
QUESTION = [{"role": "user", "content": "How high?"}, {"role": "assistant", "content": "3 m"}]


@pytest.fixture(scope="module")
def shown(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> list[Episode]:
    """Demonstrations, one with sub-agents among them."""
    demos = Demonstrator(Recipe.of(tiny_config(tmp_path_factory.mktemp("demos"), sft={"parallel": 1.0})), tokenizer)

    async def all_of_them() -> list[Episode]:
        return [await demos.episode(index) for index in range(6)]

    return asyncio.run(all_of_them())


def tools_of(config: Config, role: Role, spawning: bool) -> list[dict[str, Any]]:
    more = PromptsConfig().spawning if role is Role.ORCHESTRATOR and spawning else ()
    return [tool.to_openai() for tool in (*config.envs.build().tools(), *more)]


# ---------------------------------------------------------------- conversations as rows


def test_messages_become_the_tokens_that_the_swarm_wrote(shown: list[Episode], tokenizer: Tokenizer, tmp_path: Path):
    config, chat = tiny_config(tmp_path), KimiChat(tokenizer)
    assert any(episode.subagents for episode in shown)
    for episode in shown:
        offered = "create_subagent" in tokenizer.decode(episode.orchestrator.tokens[:400])
        for trace in episode.traces:
            told = Conversation(messages=messages(episode, trace))
            row = conversation_row(chat, told, tools_of(config, trace.role, offered), 0.25)
            assert row.tokens.tolist() == trace.tokens
            np.testing.assert_array_equal(row.weights, np.where(trace.mask, np.float32(1), np.float32(0.25)))


def test_calls_get_the_formats_ids_and_results_find_them(tokenizer: Tokenizer):
    calls = [
        {"id": id, "type": "function", "function": {"name": "search", "arguments": json.dumps({"query": query})}}
        for id, query in (("their-b", "one"), ("their-a", "two"))
    ]
    told = [
        {"role": "user", "content": [{"type": "text", "text": "Two things."}]},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "their-a", "content": "second"},
        {"role": "tool", "tool_call_id": "their-b", "content": "first"},
        {"role": "assistant", "content": "both", "reasoning_content": "hidden"},
    ]
    row = conversation_row(KimiChat(tokenizer), Conversation(messages=told), [], 0.0)
    text = tokenizer.decode(row.tokens.tolist())
    assert text.index("## Return of functions.search:1\nsecond") < text.index("## Return of functions.search:0\nfirst")
    written = tokenizer.decode(row.tokens[row.weights == 1].tolist())
    assert "both" in written and "first" not in written and "hidden" not in text and "their-a" not in text


# ---------------------------------------------------------------- files


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_rows_of_messages_and_subagents_in_any_of_their_forms(tmp_path: Path):
    rows = [
        {"messages": QUESTION, "subagents": [{"messages": QUESTION, "tools": [{"type": "function"}]}, QUESTION]},
        {"messages": json.dumps(QUESTION), "subagents": json.dumps([QUESTION]), "other": 1},
        {"messages": QUESTION, "tools": json.dumps([{"type": "function"}])},
    ]
    found = read_conversations(write(tmp_path / "rows.jsonl", *rows))
    assert [len(agents) for agents in found] == [3, 2, 1]
    assert all(list(agent.messages) == QUESTION for agents in found for agent in agents)
    offered = [{"type": "function"}]
    assert [found[0][0].tools, found[0][1].tools, found[2][0].tools] == [None, offered, offered]
    pq.write_table(
        pa.Table.from_pylist([{"messages": QUESTION, "subagents": [QUESTION] * 2}]), tmp_path / "rows.parquet"
    )
    [agents] = read_conversations(tmp_path / "rows.parquet")
    assert [m["content"] for m in agents[2].messages] == ["How high?", "3 m"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x"}, "line 2: no field `messages`"),
        ({"messages": []}, "messages: no list of messages"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "message 0 has none of the roles"),
        ({"messages": QUESTION[:1]}, "nothing to imitate"),
        ({"messages": QUESTION[1:]}, "does not begin with a question"),
        ({"messages": [*QUESTION, QUESTION[1]]}, "follow each other"),
        ({"messages": QUESTION, "subagents": [QUESTION[:1]]}, r"subagents\[0\]: it holds nothing"),
    ],
)
def test_what_cannot_be_imitated_is_named_by_line_and_agent(tmp_path: Path, row: dict[str, Any], said: str):
    path = write(tmp_path / "rows.jsonl", {"messages": QUESTION}, row)
    with pytest.raises(UserError, match=rf"sft\.data = .*rows\.jsonl.*{said}"):
        read_conversations(path)


def test_of_stored_episodes_those_with_full_marks_are_imitated(shown: list[Episode], tmp_path: Path):
    config = tiny_config(tmp_path)
    for place, episode in enumerate(shown):
        if place == 1:
            episode.answer = "nothing"
        score_episode(episode, config.rewards, config.rewards.weights(0, 1))
    EpisodeStore(tmp_path / "store").write(0, shown, policy_version=0)
    found = read_conversations(tmp_path / "store")
    good = [episode for episode in shown if episode.rewards["perf"] == 1]
    assert len(found) == len(good) == len(shown) - 1
    assert [agents[0].messages[1]["content"] for agents in found] == [episode.task.prompt for episode in good]


def test_of_a_tasks_right_episodes_the_cheapest_are_imitated(shown: list[Episode], tmp_path: Path):
    config, first = tiny_config(tmp_path), shown[0]
    longer = copy.deepcopy(first)
    turns = longer.orchestrator.turns
    turns.insert(0, copy.deepcopy(turns[0]))  # a critical step more
    wrong = copy.deepcopy(first)
    wrong.answer = "nothing"
    del wrong.orchestrator.turns[1:]  # cheap, and no answer
    for place, episode in enumerate(group := [longer, wrong, first, *shown[1:]]):
        episode.index = place
        score_episode(episode, config.rewards, config.rewards.weights(0, 1))
    EpisodeStore(tmp_path / "store").write(0, group, policy_version=0)
    right = [episode for episode in group if episode.rewards["perf"] == 1]
    assert longer in right and wrong not in right
    assert len(read_conversations(tmp_path / "store")) == len(right)
    found = read_conversations(tmp_path / "store", best=1)
    assert [agents[0].messages[1]["content"] for agents in found] == [e.task.prompt for e in right if e is not longer]
    written = [message for message in found[0][0].messages if message["role"] == "assistant"]
    assert len(written) == len(first.orchestrator.turns)


def test_recorded_conversations_go_round_each_time_in_another_order(tokenizer: Tokenizer, tmp_path: Path):
    rows = [{"messages": [QUESTION[0], {"role": "assistant", "content": f"{n} m"}]} for n in range(20)]
    path = write(tmp_path / "rows.jsonl", *rows)
    config = tiny_config(tmp_path)
    config = config.model_copy(update={"sft": config.sft.model_copy(update={"data": str(path)})})
    worker = RecordedWorker(Recipe.of(config), str(tokenizer.save(tmp_path / "tokenizer.json")))
    laps = [asyncio.run(worker.rows(start, 20)) for start in (0, 20)]
    texts = [[tokenizer.decode(row.tokens[row.weights == 1].tolist()) for row in lap] for lap in laps]
    assert len(set(texts[0])) == 20 and texts[0] != texts[1] and set(texts[0]) == set(texts[1])


# ---------------------------------------------------------------- settings


@pytest.fixture
def given(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A policy's folder."""
    save_policy(tmp_path / "given", tiny_model(), random_weights(tiny_model()), tokenizer, {})
    return tmp_path / "given"


def test_the_rate_warms_up_and_falls_to_a_twentieth():
    assert 0 < fine_tuning_rate(0.0) < fine_tuning_rate(0.04) < 1
    assert fine_tuning_rate(0.06) > fine_tuning_rate(0.5) > fine_tuning_rate(1.0) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["sft.data=teacher"], "sft.data=teacher is for a cold start over given weights"),
        (["sft.enough=0.8"], "sft.enough=0.8 is for a cold start over given weights"),
        (["sft.data=nowhere.jsonl", "model.init=INIT"], "neither teacher nor a file or folder"),
        (["model.family=hf"], r"model\.vocab_size: is missing.*model\.init=FOLDER"),
        (["sft.lora={}", "model.init=INIT"], "sft.lora=.* needs something to imitate"),
        (
            ["sft.lora={}", "sft.data=teacher", "model.init=INIT", "trainer.parallel.zero=3"],
            "every rank must hold the weights under the adapters whole; use zero=2",
        ),
    ],
)
def test_settings_that_do_not_go_together(given: Path, tmp_path: Path, settings: list[str], said: str):
    (tmp_path / "run.yaml").write_text("{}")
    with pytest.raises(UserError, match=said):
        load_config(tmp_path / "run.yaml", [text.replace("INIT", str(given)) for text in settings])


def over(tiny_yaml: Path, init: Path, root: Path, *more: str) -> Config:
    sft = ["sft.data=teacher", "sft.tokens=5000", "sft.check_tokens=1500", "sft.lr=0.003", "sft.muon_lr=null"]
    lines = [f"  {line}" for line in tiny_yaml.read_text().splitlines()]
    start = next(i for i, line in enumerate(lines) if line == "  model:")
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith("    "))
    text = "\n".join(line[2:] for line in lines[:start] + lines[end:])
    (root / "over.yaml").write_text(text)
    return load_config(root / "over.yaml", [f"root={root}", f"model.init={init}", *sft, *more])


def test_the_hash_depends_on_the_given_weights_and_on_what_is_imitated(given: Path, tiny_yaml: Path, tmp_path: Path):
    rows = write(tmp_path / "rows.jsonl", {"messages": QUESTION})
    first, *others = (
        cold_start_hash(Recipe.of(over(tiny_yaml, given, tmp_path, *more)))
        for more in ([], [f"sft.data={rows}"], ["sft.enough=0.5"], ["sft.lora={rank: 2}"], ["sft.check_tasks=4"])
    )
    assert len({first, *others}) == 5
    write(rows, {"messages": QUESTION}, {"messages": QUESTION})
    assert cold_start_hash(Recipe.of(over(tiny_yaml, given, tmp_path, f"sft.data={rows}"))) not in (first, *others)


# ---------------------------------------------------------------- training


class Stopped(Exception):
    """In place of a kill."""


def weights_of(folder: Path) -> Weights:
    return load_policy(folder, Kimi())[0]


@pytest.mark.slow
def test_a_killed_one_goes_on_and_ends_as_if_it_had_not_been(cold_start: Path, tiny_yaml: Path, tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    seen: list[int] = []

    def check(weights: Weights, tokenizer: Path, tokens: int) -> dict[str, float]:
        assert (tokenizer / "tokenizer.json").is_file()
        seen.append(tokens)
        return {"score": 0.1}

    whole = over(tiny_yaml, cold_start, tmp_path / "a", "sft.enough=0.9")
    folder = run_sft(whole, report=lambda *_: None, check=check)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["scores"] == [[tokens, 0.1] for tokens in seen] and len(seen) >= 3 and meta["tokens"] >= 5000
    assert not list(folder.parent.glob("*.kept"))

    def killed(done: int, total: int, metrics: dict[str, float]) -> None:
        if done > 4000:
            raise Stopped

    part = over(tiny_yaml, cold_start, tmp_path / "b", "sft.enough=0.9")
    with pytest.raises(Stopped):
        run_sft(part, report=killed, check=check)
    done: list[int] = []
    again = run_sft(part, report=lambda tokens, *_: done.append(tokens), check=check)
    assert min(done) > 1500  # it did not begin again
    assert json.loads((again / "meta.json").read_text())["scores"] == meta["scores"]  # of before the kill too
    first, second, given = weights_of(folder), weights_of(again), weights_of(cold_start)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    assert any((array != given[name]).any() for name, array in first.items())


@pytest.mark.slow
def test_it_ends_when_it_is_enough_and_adapters_are_merged(cold_start: Path, tiny_yaml: Path, tmp_path: Path):
    more = ("sft.enough=0.5", "sft.lora={rank: 2}")
    config = over(tiny_yaml, cold_start, tmp_path, *more)
    folder = run_sft(config, report=lambda *_: None, check=lambda *_: {"score": 0.5})
    meta = json.loads((folder / "meta.json").read_text())
    assert len(meta["scores"]) == 1 and meta["tokens"] < 5000
    first, given = weights_of(folder), weights_of(cold_start)
    changed = {name for name, array in first.items() if (array != given[name]).any()}
    assert changed and all("self_attn" in name or "shared_experts" in name for name in changed)
    assert first.keys() == given.keys()


@pytest.mark.slow
def test_a_free_run_is_scored_on_val(cold_start: Path, tiny_yaml: Path, tmp_path: Path):
    config = over(tiny_yaml, cold_start, tmp_path, "sft.enough=0.5", "sft.check_tasks=3")
    found = free_running(config)(weights_of(cold_start), cold_start, 5400)
    assert found.keys() >= {"score", "malformed"} and all(0 <= value <= 1 for value in found.values())
    kept = EpisodeStore(cold_start_folder(Recipe.of(config)).with_suffix(".checks")).read(5, "check")
    assert kept and len(kept[0]) == 3


@pytest.mark.slow
def test_a_decoder_of_transformers_is_taught_as_its_preset_says(one_ray: None, tmp_path: Path):
    folder = tmp_path / "llama"
    folder.mkdir()
    write_llama(Gguf(ROOT / "tests/data/gguf/tiny.gguf"), folder)
    shape = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 8192}
    (folder / "config.json").write_text(json.dumps(shape))
    settings = ["sft.tokens=12000", "sft.check_tokens=6000", "model.max_position_embeddings=8192", "trainer.threads=1"]
    settings.append("model.chat=hermes")  # the tiny template writes no prompt of a turn
    config = load_config(ROOT / "configs/own_model.yaml", [f"root={tmp_path}", f"model.init={folder}", *settings])
    losses: list[float] = []
    scores = iter([0.1, 0.9])
    made = run_sft(
        config,
        report=lambda done, total, metrics: losses.append(metrics["loss"]),
        check=lambda *_: {"score": next(scores)},
    )
    meta = json.loads((made / "meta.json").read_text())
    assert [score for _, score in meta["scores"]] == [0.1, 0.9] and losses[-1] < losses[0]
    weights, model, tokenizer, _ = load_policy(made, Hf())
    assert model == config.model.shape and tokenizer.template
    assert {str(array.dtype) for array in weights.values()} == {"bfloat16"}
