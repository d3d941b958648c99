"""What an episode is worth: its outcome, the reward's parts and their weights, and means of many."""
