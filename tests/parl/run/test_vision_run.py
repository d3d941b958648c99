"""Pictures from the configuration to a finished run: cold start, mistakes, training."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from seeing import VISION
from tiny import VOCAB, tiny_config

from envs.world.config import PICTURE
from envs.world.site.app import TOOLS
from model.chat.kimi import MEDIA_PAD, SPECIAL_TOKENS
from model.kimi.family import Kimi
from model.policy_files import load_policy, save_policy
from parl.cold_start.demos import Demonstrator
from parl.cold_start.imitation import run_sft
from parl.cold_start.rows import text_rows
from parl.cold_start.shipped import Recipe
from parl.cold_start.vocabulary import build_tokenizer
from parl.collect.tasks import run_tasks
from parl.config.load import config_hash, load_config, to_yaml
from parl.config.schema import Config, SftConfig
from parl.errors import UserError
from parl.learn.config import OptimizerConfig
from parl.learn.learner import Learner
from parl.run.loop import Training
from parl.track.progress import Progress
from parl.track.tracker import read_rows
from rewards.outcome.exact import exact_match
from rollouts.episode import Episode, EpisodeStatus
from rollouts.store.store import EpisodeStore

pytest.importorskip("PIL", reason="pictures: pip install -e '.[vision]'")
VISION_YAML = Path(__file__).parents[3] / "configs" / "vision.yaml"
PLACEHOLDER = VOCAB - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index(MEDIA_PAD)


def seeing_config(root: Path, **sections: Any) -> Config:
    """The tiny run with vision; only picture tasks."""
    base = tiny_config(root)
    model = {**base.model.model_dump(), "vision": VISION, "media_placeholder_token_id": PLACEHOLDER}
    world = {"entities": 120, "widths": (2, 4), "mix": {PICTURE: 1.0}}
    return tiny_config(root, model=model, envs={"config": world}, **sections)


def test_the_shipped_configuration_fits_its_own_tokenizer():
    config = load_config(VISION_YAML)
    assert config.envs.config.pictures and config.model.vision is not None
    tokenizer = build_tokenizer(Recipe.of(config))
    assert tokenizer.special[MEDIA_PAD] == config.model.media_placeholder_token_id
    assert load_config(VISION_YAML, ["optimizer.freeze_tower=true"]).optimizer.freeze_tower


def test_the_resolved_configuration_reads_back_the_same(tmp_path: Path):
    config = load_config(VISION_YAML)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_a_configuration_without_vision_says_nothing_of_it():
    """Hashes and files of policies without vision are unchanged."""
    config = load_config(VISION_YAML.with_name("quickstart.yaml"))
    assert "vision" not in config.model.model_dump() and not config.envs.config.pictures
    seeing = config.model.model_copy(update={"vision": load_config(VISION_YAML).model.vision})
    assert config_hash(seeing) != config_hash(config.model)


def test_pictures_for_a_policy_that_cannot_see_are_a_mistake_with_a_fix(tmp_path: Path):
    blind = to_yaml(load_config(VISION_YAML.with_name("quickstart.yaml")))
    (tmp_path / "blind.yaml").write_text(blind)
    with pytest.raises(UserError, match=r"without model\.vision cannot see"):
        load_config(tmp_path / "blind.yaml", ["envs.config.mix={picture: 1.0}"])


def test_another_placeholder_than_the_tokenizers_is_named_with_the_right_one(tmp_path: Path):
    config = seeing_config(tmp_path)
    wrong = config.model.model_copy(update={"media_placeholder_token_id": 5})
    with pytest.raises(UserError, match=f"media_placeholder_token_id=5 is not .* set it to {PLACEHOLDER}"):
        run_sft(config.model_copy(update={"model": wrong}))


def test_demonstrations_look_at_the_picture_and_are_right(tmp_path: Path):
    config = seeing_config(tmp_path)
    demos = Demonstrator(Recipe.of(config), build_tokenizer(Recipe.of(config)))

    async def some() -> list[Episode]:
        return [await demos.episode(index) for index in range(12)]

    for episode in asyncio.run(some()):
        assert episode.status is EpisodeStatus.ANSWERED and exact_match(episode.answer, episode.task.gold)
        [row] = text_rows(episode, 0.5, Random(0))
        [(start, png)] = row.media
        placeholders = row.tokens == PLACEHOLDER
        assert placeholders[start] and placeholders.sum() in (6, 9, 12) and png == episode.orchestrator.media[0][1]
        assert not row.weights[placeholders].any() and (row.weights[~placeholders] > 0).all()
        assert [turn.calls[0].name for turn in episode.orchestrator.turns[:-1]] == ["open_picture"]


def test_the_tools_of_a_world_without_pictures_are_what_they_were():
    assert [tool.name for tool in TOOLS] == ["search", "open_page", "find_in_page"]


def taught(config: Config, cold: Path, folder: Path) -> Path:
    """``cold`` after memorising the first two demonstrations, since so short a cold start calls no tool."""
    weights, model, tokenizer, meta = load_policy(cold, Kimi())
    demos = Demonstrator(Recipe.of(config), tokenizer)

    async def first_two() -> list[Episode]:
        return [await demos.episode(index) for index in range(2)]

    episodes = asyncio.run(first_two())
    assert [episode.task for episode in episodes] == run_tasks(config).take(0, 2)
    rows = [row for episode in episodes for row in text_rows(episode, 0.5, Random(0))]
    learner = Learner(model, OptimizerConfig(lr=0.01, muon_lr=0.02), seed=1)
    learner.load_weights(weights)
    total = float(sum(row.weights.sum() for row in rows))
    for _ in range(200):
        seen = learner.text_step(rows, denominator=total, micro_tokens=8192, lr_scale=1.0)
        if seen["right"] == seen["acted"] and seen["loss"] < 0.1:
            break
    assert seen["right"] == seen["acted"]
    save_policy(folder, model, learner.weights(), tokenizer, meta)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_with_pictures_goes_from_the_cold_start_to_a_trained_policy(one_ray: None, tmp_path: Path):
    """A few cold-start steps, then two of RL, on two ranks, on the tasks of the first two demonstrations."""
    sft = {"tokens": 6_000, "copying_tokens": 1_000, "drill_tokens": 1_000, "batch_tokens": 1400, "wrong": 1.0}
    config = seeing_config(
        tmp_path,
        seed=10_000 + SftConfig().seed,  # the demonstrations' own tasks
        sft=sft,
        rollouts={
            "group_size": 8,
            "tasks_per_step": 1,
            "temperature": 0.8,
            "concurrency": 8,
            "budget": {"orchestrator_steps": 4, "turn_tokens": 48},
        },
        trainer={"steps": 2, "ranks": 2},
    )
    alone = config.model_copy(update={"trainer": config.trainer.model_copy(update={"ranks": 1})})
    cold = taught(config, run_sft(alone, report=lambda done, total, metrics: None), tmp_path / "taught")
    with Progress(2, "seeing") as progress:
        policy = Training(config, config.run_dir, cold).run(progress)
    store = EpisodeStore(config.run_dir / "episodes")
    episodes = [episode for step in (1, 2) for episode in (store.read(step) or ([], 0))[0]]
    assert len(episodes) == 16 and all(e.status is not EpisodeStatus.FAILED for e in episodes)
    shown = [episode for episode in episodes if episode.orchestrator.media]
    assert len(shown) >= 4, f"{len(shown)} of 16 episodes showed a picture: too little to test"
    gaps = [row["policy/engine_gap"] for row in read_rows(config.run_dir / "metrics.jsonl")]
    assert len(gaps) == 2 and max(gaps) < 1e-4
    before, after = load_policy(cold, Kimi())[0], load_policy(policy, Kimi())[0]
    moved = {name for name in before if np.any(before[name] != after[name])}
    assert before.keys() == after.keys() and any(name.startswith("vision.vision_tower.") for name in moved)
