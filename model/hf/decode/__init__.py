"""Decoders for transformers' models: a native one for the Llama and Qwen shapes, a reference one for all."""
