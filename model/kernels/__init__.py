"""Routing and experts: a specification in PyTorch, the same in C++ and in Triton."""
