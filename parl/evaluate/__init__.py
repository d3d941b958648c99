"""What a policy is worth: evaluation, scoring, comparison."""
