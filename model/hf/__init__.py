"""Any decoder that transformers has as the learner's policy: the family ``hf``."""
