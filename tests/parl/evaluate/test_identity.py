"""The identity of stored evaluation episodes, key by key, and for what is not a key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from tiny import tiny_config, tiny_model

from envs.base import Role, Task
from envs.world.config import WorldConfig
from envs.world.environment import WorldEnvironment
from envs.world.reference import ReferencePolicy, subagent_act
from model.chat.kimi import KimiChat
from model.policy_files import SINGLE
from model.tokenizer.tokenizer import Tokenizer
from parl.config.plugin_sections import built_in_sections
from parl.config.schema import Config
from parl.errors import UserError
from parl.evaluate import identity as module
from parl.evaluate.chat_model import Served
from parl.evaluate.identity import EFFECTS, Effect, description, effect_of, identity, policy_digest, prompts_digest
from parl.evaluate.policies import Policy, local_policies, served_policies
from rewards.base import Reward
from rollouts.config import BudgetConfig
from rollouts.engine.scripted import ScriptedEngine
from rollouts.episode import Episode, Trace
from rollouts.prompts import PromptsConfig
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

POLICY = {"policy": "1", "subagents": "2"}


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections of a field that no name chooses: one, or none."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [section for part in get_args(annotation) for section in sections(part)]


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys below ``section``, those of optional sections and of variants, too."""
    for name, field in section.model_fields.items():
        inner = [*built_in_sections(prefix + name).values()] or sections(field.annotation)
        for one in inner:
            yield from leaves(one, f"{prefix}{name}.")
        if not inner:
            yield prefix + name


OWN = ("envs.name", "envs.config.")  # the environment says which of its keys change no episode
KEYS = [key for key in dict.fromkeys(leaves(Config)) if not key.startswith(OWN)]


def test_every_key_is_classified_once_and_no_key_is_classified_that_does_not_exist():
    listed = [
        f"{section}.{name}".lstrip(".")
        for parts in module._TABLE.values()
        for section, names in parts.items()
        for name in names.split()
    ]
    assert sorted(listed) == sorted(set(listed)) == sorted(EFFECTS)
    ours = [key for key in KEYS if not key.startswith(("rewards.", "objective."))]  # there a class brings its own
    ours += [key for key in leaves(Reward, "rewards.") if key != "rewards.name"]  # but what every reward has is ours
    assert sorted(ours) == sorted(EFFECTS), "classify the new key in evaluate/identity.py: does it change an episode?"


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, dict):
        return {name: weight + 1 for name, weight in value.items()}
    if isinstance(value, tuple | list):
        return [*value, "x"]
    return "other" if value is None else f"{value}x"


class Told:
    """A configuration with another value for one key, without validation."""

    def __init__(self, config: Config, key: str | None = None) -> None:
        self._config, self._tree = config, config.model_dump()
        parts = (key or "").split(".")
        node = self._tree
        for part in parts[:-1]:
            node[part] = node.get(part) or {}
            node = node[part]
        if key:
            node[parts[-1]] = other(node.get(parts[-1]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)

    def model_dump(self, mode: str = "json", exclude: Collection[str] = ()) -> dict[str, Any]:
        tree = {name: part for name, part in self._tree.items() if name not in exclude}
        return json.loads(json.dumps(tree, default=str))


def told(config: Any, *, chat: bool) -> str:
    return identity(description(config, POLICY, spawning=True, chat=chat))


@pytest.mark.parametrize("chat", [False, True], ids=["own weights", "chat server"])
@pytest.mark.parametrize("key", KEYS)
def test_another_value_of_a_key_is_another_evaluation_where_it_changes_episodes(key: str, chat: bool, tmp_path: Path):
    config = tiny_config(tmp_path)
    changes = told(Told(config, key), chat=chat) != told(Told(config), chat=chat)
    wanted = effect_of(key) in (Effect.ALL, Effect.CHAT if chat else Effect.OWN) and key != "rollouts.swarm"
    assert changes == wanted  # whether it may spawn is told apart from the configuration: a single agent never may


@pytest.mark.parametrize("key", WorldConfig.model_fields)
def test_the_environments_keys_count_but_those_that_it_calls_neutral(key: str, tmp_path: Path):
    (tmp_path / "table.csv").write_text("name,x\na,1\nb,2\n")
    changed = {"source": tmp_path / "table.csv", "transport": "socket", "mix": {"wide": 1.0}, "widths": (2, 3)}
    config = tiny_config(tmp_path, envs={"config": {"widths": (2, 4)}})
    own = config.envs.config
    value = changed.get(key, own.__dict__[key])
    value = (value[0], value[1] + 1) if isinstance(value, tuple) and key not in changed else value
    value = value + 1 if isinstance(value, int) else value / 2 + 0.1 if isinstance(value, float) else value
    envs = config.envs.model_copy(update={"config": own.model_copy(update={key: value})})
    other = config.model_copy(update={"envs": envs})
    assert (told(other, chat=False) != told(config, chat=False)) == (key != "transport")


def test_keys_of_an_objective_or_a_reward_that_is_not_ours_change_no_episode():
    found = [effect_of(key) for key in ("objective.temperature_of_mine", "rewards.bonus", "rollouts.news")]
    assert found == [Effect.NONE, Effect.NONE, Effect.ALL]


def test_a_key_that_nobody_classified_counts(tmp_path: Path):
    config = Told(tiny_config(tmp_path))
    before = told(config, chat=False)
    config._tree["rollouts"]["news"] = 1
    assert told(config, chat=False) != before


# The intended effect of each kind of key. A change reuses stored episodes wrongly, or repeats them in vain.
MEANT = {
    "rollouts.limits.agent_s": Effect.ALL,
    "rollouts.limits.tool_calls": Effect.ALL,
    "rollouts.context.policy": Effect.ALL,
    "rollouts.context.subagent_tokens": Effect.ALL,
    "rollouts.budget.episode_s": Effect.ALL,
    "rollouts.budget.direct_calls": Effect.ALL,
    "rollouts.subagent_temperature": Effect.ALL,
    "eval.temperature": Effect.ALL,
    "eval.top_p": Effect.ALL,
    "eval.seed": Effect.ALL,
    "eval.split": Effect.ALL,
    "model.rms_norm_eps": Effect.OWN,
    "model.quantize_experts": Effect.OWN,
    "rollouts.subagent_pool": Effect.OWN,
    "rollouts.engine": Effect.OWN,
    "rollouts.engine_config.of_a_strangers_class": Effect.OWN,
    "sft.seed": Effect.CHAT,
    "envs.tasks": Effect.CONTENT,
    "model.init": Effect.CONTENT,
    "rollouts.subagent_policy": Effect.CONTENT,
    "rollouts.temperature": Effect.NONE,
    "rollouts.workers": Effect.NONE,
    "rollouts.concurrency": Effect.NONE,
    "rollouts.placement": Effect.NONE,
    "rollouts.http.urls": Effect.NONE,
    "trainer.threads": Effect.NONE,
    "eval.tasks": Effect.NONE,
    "seed": Effect.NONE,
    "rewards.critical_penalty": Effect.NONE,
    "rewards.of_a_strangers_class": Effect.NONE,
}


@pytest.mark.parametrize("key", MEANT)
def test_keys_have_the_effect_that_is_meant(key: str):
    assert effect_of(key) is MEANT[key]


def test_a_server_in_the_place_of_our_frozen_engine_counts_and_its_address_does_not(tmp_path: Path):
    keys = []
    for urls in ((), ("http://a",), ("http://b",)):
        http = {"urls": ["http://p"], "frozen_urls": urls}
        keys.append(told(tiny_config(tmp_path, rollouts={"engine": "vllm", "http": http}), chat=False))
    assert keys[0] != keys[1] == keys[2]


def test_the_policy_and_whether_it_may_spawn_count(tmp_path: Path):
    config = tiny_config(tmp_path)
    found = [
        identity(description(config, {"policy": p, "subagents": s}, spawning=spawning, chat=False))
        for p, s, spawning in (("1", "2", True), ("1", "2", False), ("2", "2", True), ("1", "1", True))
    ]
    assert len(set(found)) == 4


TASK = {"prompt": "Q", "gold": {"kind": "exact", "answers": ["x"]}, "split": "test"}


def test_tables_and_tasks_count_by_what_they_hold_wherever_they_lie(tmp_path: Path):
    def key(name: str, table: str, answer: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "table.csv").write_text(table)
        (folder / "tasks.jsonl").write_text(json.dumps({**TASK, "gold": {"kind": "exact", "answers": [answer]}}))
        envs = {"config": {"source": folder / "table.csv"}, "tasks": str(folder / "tasks.jsonl")}
        return told(tiny_config(tmp_path, envs=envs), chat=False)

    first, same, table, answer = key("a", "x", "1"), key("b", "x", "1"), key("c", "y", "1"), key("d", "x", "2")
    assert first == same and len({first, table, answer}) == 3


def policy(folder: Path, weights: bytes, vocabulary: bytes, name: str = "tokenizer.json") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / name).write_bytes(vocabulary)
    (folder / "config.json").write_text(tiny_model().model_dump_json())
    return folder


def test_weights_count_by_what_they_hold(tmp_path: Path):
    given = [("a", b"1", b"v"), ("b", b"1", b"v"), ("c", b"2", b"v"), ("d", b"1", b"w")]
    first, same, weights, vocabulary = (policy_digest(policy(tmp_path / n, w, v)) for n, w, v in given)
    assert first == same and len({first, weights, vocabulary}) == 3
    assert policy_digest(policy(tmp_path / "k", b"1", b"v", "tiktoken.model")) == first
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        policy_digest(tmp_path)


def test_the_vocabulary_of_a_chat_servers_text_counts_by_what_it_holds(tmp_path: Path):
    config = tiny_config(tmp_path)

    def key(folder: Path, *, chat: bool) -> str:
        init = config.model_copy(update={"model": config.model.model_copy(update={"init": folder})})
        return told(init, chat=chat)

    folders = [policy(tmp_path / n, w, v) for n, w, v in (("a", b"1", b"v"), ("b", b"2", b"v"), ("c", b"1", b"w"))]
    first, weights, vocabulary = (key(folder, chat=True) for folder in folders)
    assert first == weights != vocabulary
    assert len({key(folder, chat=False) for folder in folders}) == 1  # there the policy's digest says it


def test_what_agents_are_told_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = told(tiny_config(tmp_path), chat=False)
    with monkeypatch.context() as patch:
        patch.setattr(module, "VERSION", 0)
        assert told(tiny_config(tmp_path), chat=False) != before
    others = [{"thinking": True}, *({"prompts": PromptsConfig(**{name: "Do."})} for name in PromptsConfig.model_fields)]
    config = tiny_config(tmp_path)
    for other in others:
        rollouts = config.rollouts.model_copy(update=other)
        assert told(config.model_copy(update={"rollouts": rollouts}), chat=False) != before
    prompts, chat = PromptsConfig(), KimiChat()
    assert prompts_digest((), prompts, chat) != prompts_digest(WorldEnvironment(WorldConfig()).tools(), prompts, chat)


def with_policies(root: Path, **sections: Any) -> Config:
    """A run with a policy for sub-agents, so that nothing is trained."""
    for name in ("policy", "agents", "cold"):
        if not (root / name).exists():
            policy(root / name, name.encode(), b"v")
    rollouts = {"subagent_policy": root / "agents", **sections.pop("rollouts", {})}
    return tiny_config(root, rollouts=rollouts, **sections)


def stand_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up files in place of a cold start and policies."""
    monkeypatch.setattr("parl.evaluate.policies.starting_policy", lambda config, **_: root / "cold")
    monkeypatch.setattr("parl.evaluate.policies.check_policy_files", lambda folder, cure: None)


@pytest.mark.parametrize(
    ("changed", "reused"),
    [
        ({"rollouts": {"limits": {"agent_s": 3.0}}}, False),
        ({"rollouts": {"context": {"policy": "discard_all", "orchestrator_tokens": 200}}}, False),
        ({"rollouts": {"swarm": False}}, False),
        ({"rollouts": {"workers": 3, "concurrency": 2}}, True),
        ({"eval": {"tasks": 3}}, True),
        ({"eval": {"top_p": 0.5}}, False),
    ],
)
def test_stored_episodes_are_used_again_only_under_the_same_identity(
    changed, reused: bool, tmp_path: Path, monkeypatch
):
    stand_in(tmp_path, monkeypatch)

    def chosen(config: Config) -> Policy:
        return local_policies(config, tmp_path / "policy", False, ())[0]

    first = chosen(with_policies(tmp_path))
    assert (chosen(with_policies(tmp_path, **changed)).store == first.store) == reused
    assert first.store.name == f"model-{identity(first.about['identity'])}"  # a reader can see what differs


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json is not there"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "model.safetensors.index.json"),
            r"model\.init=",
        ),
        (lambda folder: (folder / SINGLE).unlink(), "train it first"),
        (lambda folder: (folder / "tokenizer.json").write_bytes(b"w"), r"another vocabulary .*model\.init="),
        (
            lambda folder: (folder / "config.json").write_text(tiny_model(rms_norm_eps=0.1).model_dump_json()),
            r"rms_norm_eps=0\.1, but model\.rms_norm_eps=1e-05",
        ),
    ],
    ids=["no tokenizer", "no shape", "several files", "no weights", "another vocabulary", "another shape"],
)
def test_a_folder_that_is_no_policy_of_the_run_is_a_mistake_with_a_cure(harm, named: str, tmp_path: Path, monkeypatch):
    stand_in(tmp_path, monkeypatch)
    config = with_policies(tmp_path)
    local_policies(config, tmp_path / "policy", False, ())
    harm(tmp_path / "policy")
    with pytest.raises(UserError, match=named):
        local_policies(config, tmp_path / "policy", False, ())


def test_the_weights_of_sub_agents_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stand_in(tmp_path, monkeypatch)
    found = []
    for weights in (b"1", b"2", b"1"):
        config = with_policies(tmp_path)
        (tmp_path / "agents" / SINGLE).write_bytes(weights)
        found.append(local_policies(config, tmp_path / "policy", False, ())[0].store)
    assert found[0] == found[2] != found[1]


def test_a_servers_model_and_address_count(tmp_path: Path):
    config = tiny_config(tmp_path)
    told = [Served(url=url, name=name) for url, name in (("http://a/v1", "m"), ("http://a/v1", "n"), ("http://b", "m"))]
    assert len({one.store for served in told for one in served_policies(config, served, False)}) == 6


WORLD = WorldConfig(entities=120, widths=(2, 4), distractors=0.5, aliases=0.2, hops=(2, 3), attributes=(1, 2))
MADE = "8a3eaab81b45"  # of VERSION 2


async def scripted(environment: WorldEnvironment, task: Task, style: Any, tokenizer: Tokenizer) -> Episode:
    reference = ReferencePolicy(style=style, seed=0)

    def pool(trace: Trace) -> ScriptedEngine:
        if trace.role is Role.ORCHESTRATOR:
            return ScriptedEngine(trace, KimiChat(tokenizer), lambda history: reference.act(task, history))
        return ScriptedEngine(trace, KimiChat(tokenizer), lambda history: subagent_act(trace.prompt, history))

    settings = SwarmSettings(chat=KimiChat(tokenizer), pool=pool, budget=BudgetConfig(turn_tokens=4096))
    return await run_episode(task, environment, settings, index=0, seed=1, critical_budget=0)


async def test_the_code_makes_the_episodes_of_its_version(tokenizer: Tokenizer):
    """If this fails, raise ``VERSION`` and put the new hash here; stored episodes are then not reused."""
    environment = WorldEnvironment(WORLD)
    made = hashlib.sha256()
    stream = environment.task_stream("test", 7)
    for number in range(12):
        task = stream[number]
        for style in ("serial", "parallel"):
            episode = await scripted(environment, task, style, tokenizer)
            for trace in episode.traces:
                text = tokenizer.decode(trace.tokens)
                turns = [[turn.content, len(turn.calls), *(r.text for r in turn.results)] for turn in trace.turns]
                told = [task.to_row(), trace.agent_id, str(trace.status), trace.message, text, turns]
                made.update(json.dumps(told, sort_keys=True).encode())
    await environment.close()
    assert made.hexdigest()[:12] == MADE
