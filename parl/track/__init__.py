"""What a run shows during training."""
