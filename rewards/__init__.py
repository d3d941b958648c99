"""Rewards of episodes: outcome scores, reward parts and their weights, and means over many."""
