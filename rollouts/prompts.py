"""System prompt and spawning tools of K2.5's orchestrator (report, E.8), kept short for all agents."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from envs.base import ToolSpec

CREATE_SUBAGENT, ASSIGN_TASK = "create_subagent", "assign_task"
SPAWNING_NAMES = frozenset((CREATE_SUBAGENT, ASSIGN_TASK))
PROMPT_METRIC = "swarm/prompt"  # metric: the orchestrator's system prompt, unless it is the default
_STRING = {"type": "string"}


class PromptsConfig(BaseModel):
    """The orchestrator's system prompt, and descriptions of the two spawning tools."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    orchestrator: str = Field(default="Answer the question with the tools.", description="its system prompt")
    create_subagent: str = Field(default="Register a sub-agent.", description="description of the tool")
    assign_task: str = Field(
        default="Give a sub-agent a task. Several run at once.", description="description of the tool"
    )

    @property
    def spawning(self) -> tuple[ToolSpec, ToolSpec]:
        """The two spawning tools."""
        return (
            _tool(CREATE_SUBAGENT, self.create_subagent, "name", "system_prompt"),
            _tool(ASSIGN_TASK, self.assign_task, "agent", "prompt"),
        )


def _tool(name: str, description: str, *arguments: str) -> ToolSpec:
    properties = dict.fromkeys(arguments, _STRING)
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return ToolSpec(name=name, description=description, parameters=parameters)
