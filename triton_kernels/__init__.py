"""Triton kernels, one module a family, behind the signatures of csrc/schema.cpp.

They run on CUDA tensors, and on CPU tensors with TRITON_INTERPRET=1, where Triton's interpreter executes them.
"""
