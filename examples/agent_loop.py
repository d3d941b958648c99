"""An agent program of your own, on OpenAI's client. With this file's folder as the working directory:

parl train harness.yaml
"""

import json

import openai
from town_tools import POPULATIONS

TOOL = {
    "type": "function",
    "function": {
        "name": "population",
        "description": "How many people live in a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}


def answer(run) -> str:
    """One episode: ``run`` has the task and the policy's address. Returns the answer, which the task's gold scores."""
    messages = [{"role": "user", "content": run.task.prompt}]
    with openai.OpenAI(base_url=run.url, api_key=run.key) as client:
        while True:
            reply = client.chat.completions.create(model=run.model, messages=messages, tools=[TOOL])
            said = reply.choices[0].message
            messages.append(said.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
            if not said.tool_calls:
                return said.content or ""
            for call in said.tool_calls:
                town = json.loads(call.function.arguments).get("town")
                result = str(POPULATIONS.get(town, "no such town"))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
