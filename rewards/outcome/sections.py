"""Sections for tasks whose answers a judge or a command scores."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from envs.base import Section
from rollouts.engine.address import check_address

ANSWER, TASK, REWARD = "answer.txt", "task.json", "reward.txt"  # the files of a command
_FIELDS = ("{question}", "{answer}")


class JudgeSection(Section):
    """A model that compares an answer with the gold ones, behind OpenAI's chat completions."""

    url: str = Field(description="root of the API, e.g. https://api.openai.com/v1")
    model: str = Field(min_length=1, description="the model's name there")
    api_key_env: str | None = Field(default=None, description="environment variable with the server's key")
    prompt: Path | None = Field(
        default=None,
        description="a file that asks, with {question}, {gold} and {answer}; its reply must have a line"
        " `correct: yes` or `correct: no`, or `score: NUMBER`. null = the built-in one",
    )
    temperature: float = Field(default=0.0, ge=0, description="0 = greedy")
    max_tokens: int = Field(default=1024, gt=0, description="tokens of a reply")
    tries: int = Field(default=4, gt=0, description="requests for one reply, with growing pauses, and readings of it")
    request_s: float = Field(default=60.0, gt=0, description="deadline of one request")
    concurrency: int = Field(default=16, gt=0, description="requests at once in one worker")
    price_in: float = Field(default=0.0, ge=0, description="per million tokens of prompts")
    price_out: float = Field(default=0.0, ge=0, description="per million tokens of replies")

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        check_address(url, "name the environment variable with its key in rewards.judge.api_key_env")
        return url.rstrip("/")

    @field_validator("prompt")
    @classmethod
    def _whole(cls, prompt: Path | None) -> Path | None:
        if prompt is not None and prompt.is_file():
            text = prompt.read_text(encoding="utf-8")
            if missing := [field for field in _FIELDS if field not in text]:
                raise ValueError(f"{prompt} has no {missing[0]}, which the judge must see: write it where it belongs")
        return prompt


class CommandSection(Section):
    """A program that scores an answer in the sandbox."""

    argv: tuple[str, ...] = Field(
        default=(),
        description=f"the program and its arguments, unless the gold names its own; it finds {ANSWER} and {TASK}",
    )
    reads: Literal["file", "exit"] = Field(
        default="file",
        description=f"what scores: {REWARD} where the command writes it, or its exit code alone. exit where the"
        " command executes the answer in its folder, which could write the file itself",
    )
    deadline_s: float = Field(default=30.0, gt=0, description="time that it has; later is the lowest score")
    level: str = Field(default="rlimits", description="weakest isolation that will do: bubblewrap, landlock or rlimits")
    readable: tuple[Path, ...] = Field(default=(), description="files and folders of this machine that it may read")

    @model_validator(mode="after")
    def _known(self) -> CommandSection:
        if self.level not in ("bubblewrap", "landlock", "rlimits", "container"):
            raise ValueError(f"level={self.level} is not one of bubblewrap, landlock, rlimits, container")
        return self
