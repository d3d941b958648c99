"""An OpenEnv server. In this file's folder, and with the extra openenv:

python openenv_game.py & parl train openenv.yaml
"""

import sys

import uvicorn
from openenv.core.env_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class Guess(Action):
    number: int


class Seen(Observation):
    said: str = ""


class Game(Environment):
    """Guess a number below 20; the seed is the number."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    number, state = 0, State()

    def reset(self, seed=None, episode_id=None, **more):
        self.number, self.state = (seed or 0) % 20, State(episode_id=episode_id)
        return Seen(said="I think of a number from 0 to 19.", done=False, reward=0.0)

    def step(self, action, timeout_s=None, **more):
        off = self.number - action.number
        return Seen(said="right" if not off else "higher" if off > 0 else "lower", done=not off, reward=float(not off))


if __name__ == "__main__":
    app = create_app(Game, Guess, Seen, env_name="game", max_concurrent_envs=100)
    uvicorn.run(app, port=int(sys.argv[1]) if sys.argv[1:] else 8766)
