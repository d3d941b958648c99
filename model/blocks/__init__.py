"""What families share: norms, feed-forward parts, log-probs, recomputation. No block knows a family."""
