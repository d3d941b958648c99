"""Rewards of episodes: outcome scores, reward parts and their weights, and means over many.

A formula of your own derives from :class:`rewards.base.Reward`; the built-in ones are listed in
``parl.config.plugin_kinds.REWARDS``.
"""
