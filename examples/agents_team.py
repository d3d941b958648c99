"""Two agents of OpenAI's Agents SDK (pip install openai-agents), which hand over to each other, as the environment:

envs: {name: harness, tasks: town_tools:tasks, config: {command: [python, agents_team.py], folder: .}}

Each agent's conversation with the policy is a trace. The program posts its own reward.
"""

import asyncio
import json
import os
from urllib.request import Request, urlopen

from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_api, set_tracing_disabled
from town_tools import POPULATIONS


@function_tool
def population(town: str) -> str:
    """How many people live in a town."""
    return str(POPULATIONS.get(town, "no such town"))


async def main() -> None:
    set_tracing_disabled(True)
    set_default_openai_api("chat_completions")  # OPENAI_BASE_URL and OPENAI_API_KEY are set
    settings = {"model": os.environ["PARL_MODEL"], "model_settings": ModelSettings(include_usage=True)}
    clerk = Agent(name="clerk", instructions="Look up what is asked.", tools=[population], **settings)
    asked = clerk.as_tool(tool_name="ask_clerk", tool_description="Ask the clerk, who can look up towns.")
    chief = Agent(name="chief", instructions="Answer with the number alone. Ask the clerk.", tools=[asked], **settings)
    prompt = os.environ["PARL_PROMPT"]
    done = await Runner.run(chief, prompt, max_turns=8)
    [town] = [town for town in POPULATIONS if f"{town}?" in prompt]
    reward = float(str(POPULATIONS[town]) in str(done.final_output))
    head = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"}
    urlopen(Request(os.environ["PARL_REWARD_URL"], json.dumps({"reward": reward}).encode(), head), timeout=30)
    print(done.final_output)


asyncio.run(main())
