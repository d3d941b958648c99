"""Routing and experts: a specification in PyTorch, and kernels in C++ and Triton."""
