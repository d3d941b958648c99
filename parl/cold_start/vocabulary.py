"""The vocabulary of a policy from scratch: BPE over what its environment's teacher gives, and the chat scaffolding."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from envs.base import Environment
from envs.teacher import Teacher, Words
from model.tokenizer.bpe import plain_texts, train_tokenizer
from model.tokenizer.tokenizer import Tokenizer
from parl.cold_start.shipped import Recipe
from parl.config.family import chat_format
from parl.errors import UserError

_PROMPTS = 150  # times that each kind of prompt is shown


def teacher_of(recipe: Recipe, environment: Environment) -> Teacher:
    """The environment's teacher; UserError where it has none and a policy from scratch needs one."""
    if environment.teacher is None:
        raise UserError(
            f"envs.name = {recipe.envs.name}: this environment has no teacher, so a policy from scratch cannot learn"
            " to act in it: name a pretrained checkpoint with model.init, or give the environment a teacher"
        )
    return environment.teacher


def build_tokenizer(recipe: Recipe) -> Tokenizer:
    """A tokenizer of ``tokenizer.vocab_size`` tokens; the teacher says which texts and which words."""
    environment = recipe.envs.build()
    words = teacher_of(recipe, environment).words(recipe.sft.seed)
    texts = _texts(recipe, environment, words)
    return train_tokenizer(
        texts, recipe.tokenizer.vocab_size, atoms=words.atoms, words=list(words.values), items=words.items
    )


def _texts(recipe: Recipe, environment: Environment, words: Words) -> Iterable[str]:
    """The teacher's text, and conversations' plain runs with their scaffolding as often as rollouts show it."""
    rng = Random(recipe.sft.seed)
    chat, prompts, own = chat_format(recipe.model, recipe.rollouts), recipe.rollouts.prompts, environment.tools()
    names = [tool.name for tool in (*own, *prompts.spawning)]
    calls = list(words.calls) or [{}]
    yield from words.alone
    for text in words.texts:
        yield text
        name = rng.choice(names)
        yield chat.arguments(rng.choice(calls))
        yield chat.call_id(name, rng.randrange(40))
        yield from plain_texts(chat.results([(chat.call_id(name, rng.randrange(40)), name, text)]))
    for tools in (own, (*own, *prompts.spawning)):
        declared = [tool.to_openai() for tool in tools]
        messages = [{"role": "system", "content": prompts.orchestrator}, {"role": "user", "content": ""}]
        for _ in range(_PROMPTS):
            yield from plain_texts(chat.conversation(messages, declared))
