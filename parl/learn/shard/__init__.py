"""The learner's weights, gradients and optimizer over ranks."""
