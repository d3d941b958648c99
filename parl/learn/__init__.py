"""From episodes to weights: rows, batches and the learner."""
