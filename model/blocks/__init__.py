"""Blocks that families share: norms, feed-forward, log-probs, recomputation. No block knows a family."""
