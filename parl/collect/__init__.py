"""Tasks to episodes: pools of workers and engines, and what is collected."""
