"""The policy: its families, chat formats, tokenizers and kernels."""
