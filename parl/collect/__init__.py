"""From tasks to episodes: pools of workers and engines, and the collected episodes."""
