"""The gateway in the chat formats of pretrained models: what clients send becomes the ids of the model's template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from chat_families import GLM, LLAMA, QWEN2_5, QWEN3_2507, TOOLS, Family, written

from model.chat.base import Call, ChatFormat
from model.chat.choose import chat_format
from model.tokenizer.tokenizer import load_tokenizer
from rollouts.engine.base import Completion, Finish
from rollouts.gateway.app import Gateway, GatewaySettings
from rollouts.store.store import EpisodeStore

transformers = pytest.importorskip("transformers", reason="the reference is not installed")


class Scripted:
    """An engine that writes given turns."""

    def __init__(self, chat: ChatFormat, *turns: Any) -> None:
        self.chat, self.turns = chat, list(turns)
        self.asked: list[list[int]] = []

    async def generate(self, prompt: list[int], *_: Any, **__: Any) -> Completion:
        self.asked.append(list(prompt))
        said = self.turns.pop(0)
        pieces = self.chat.assistant(said) if isinstance(said, str) else self.chat.assistant("", [said])
        tokens = self.chat.encode(pieces)
        return Completion(tokens=tokens, logprobs=[0.0] * len(tokens), finish=Finish.STOP, policy_version=1)

    async def release(self, session: str) -> None: ...


@pytest.mark.parametrize("family", [QWEN2_5, QWEN3_2507, GLM, LLAMA], ids=lambda family: family.name)
async def test_a_conversation_is_the_templates_to_the_id(family: Family, tmp_path: Path):
    tokenizer = load_tokenizer(written(family, tmp_path / "policy"))
    chat = chat_format("auto", tokenizer)
    engine = Scripted(chat, Call(id=chat.call_id("look", 0), name="look", arguments={"place": "é"}), "7.", "Ja.")
    gateway = Gateway(engine, chat, GatewaySettings(model="m", longest=4000), EpisodeStore(tmp_path / "store"))
    app = gateway.app()
    talk: list[dict[str, Any]] = [{"role": "system", "content": "Kurz."}, {"role": "user", "content": "Wo?"}]
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
    ):

        async def ask() -> dict[str, Any]:
            body = {"model": "m", "messages": talk, "tools": TOOLS, "user": "one"}
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            talk.append(answer.json()["choices"][0]["message"])
            return talk[-1]

        called = (await ask())["tool_calls"][0]
        talk.append({"role": "tool", "tool_call_id": called["id"], "content": "{}"})
        assert (await ask())["content"] == "7."
        talk.append({"role": "user", "content": "Sicher?"})
        assert (await ask())["content"] == "Ja."
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "policy")
    talk[2]["tool_calls"][0]["function"]["arguments"] = {"place": "é"}
    for end, prompt in zip((2, 4, 6), engine.asked, strict=True):
        flags = {"add_generation_prompt": True, "enable_thinking": False, "return_dict": False}
        wanted = reference.apply_chat_template(talk[:end], tools=TOOLS, **flags)
        blank = [token for name in ("<think>", "</think>") if (token := tokenizer.special.get(name)) is not None]
        blank += tokenizer.encode("\n")  # GLM closes the reasoning of each turn in its prompt
        kept = [[token for token in ids if token not in blank or family is not GLM] for ids in (prompt, wanted)]
        assert kept[0] == kept[1]
