"""A data set of Aviary's environments. With this file's folder as the working directory, and the extra steps:

parl train aviary.yaml
"""

from aviary.core import Environment, Frame, Message, TaskDataset, Tool


class Ladder(Environment[int]):
    def __init__(self, top: int):
        self.top, self.state = top, 0

    async def reset(self):
        self.tools = [Tool.from_function(self.climb)]
        return [Message(content=f"Climb exactly {self.top} rungs.")], self.tools

    def climb(self, rungs: int) -> str:
        """Climb some rungs.

        Args:
            rungs: one to three
        """
        self.state += min(max(rungs, 1), 3)
        return f"You stand on rung {self.state}."

    async def step(self, action):
        said = await self.exec_tool_calls(action)
        return said, float(self.state == self.top), self.state >= self.top, False  # reward, done, truncated

    def export_frame(self):
        return Frame(state=self.state)


class Ladders(TaskDataset):
    def __len__(self):
        return 40

    def get_new_env_by_idx(self, idx):
        return Ladder(top=2 + idx)
