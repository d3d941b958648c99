"""A task set of verifiers. With this file's folder as the working directory, and the extra verifiers:

parl train verifiers.yaml
"""

import verifiers.v1 as vf


class Data(vf.TaskData):
    answer: int


class Adder(vf.Toolset[vf.ToolsetConfig]):
    @vf.tool
    async def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        return a + b


class Sum(vf.Task[Data]):
    @vf.reward
    async def right(self, task, trace) -> float:
        return float(trace.last_reply.strip() == str(task.answer))

    @classmethod
    def toolsets(cls, config):
        return [Adder(vf.ToolsetConfig())]


class Config(vf.TasksetConfig):
    size: int = 100


class Sums(vf.Taskset[Sum, Config]):
    def load(self):
        for n in range(self.config.size):
            prompt = f"What is {37 * n} + {411 - n}? Answer the number."
            yield Sum(Data(prompt=prompt, answer=36 * n + 411), self.config.task)
