"""Episodes to weights: rows, batches and the learner."""
