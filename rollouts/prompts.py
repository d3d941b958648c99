"""What agents are told, and the spawning tools of K2.5's orchestrator (report, E.8). Short: words cost tokens."""

from __future__ import annotations

from envs.base import ToolSpec

ORCHESTRATOR_PROMPT = "Answer the question with the tools."

_STRING = {"type": "string"}

CREATE_SUBAGENT = ToolSpec(
    name="create_subagent",
    description="Register a sub-agent.",
    parameters={
        "type": "object",
        "properties": {"name": _STRING, "system_prompt": _STRING},
        "required": ["name", "system_prompt"],
    },
)
ASSIGN_TASK = ToolSpec(
    name="assign_task",
    description="Give a sub-agent a task. Several run at once.",
    parameters={
        "type": "object",
        "properties": {"agent": _STRING, "prompt": _STRING},
        "required": ["agent", "prompt"],
    },
)
SPAWNING = (CREATE_SUBAGENT, ASSIGN_TASK)
SPAWNING_NAMES = frozenset(tool.name for tool in SPAWNING)
