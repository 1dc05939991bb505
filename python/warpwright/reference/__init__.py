"""The definition of each operator in plain PyTorch, one module a family, in any precision up to float64.

Signatures are those of csrc/schema.cpp. Written to be read: no fusion, no tricks; half precisions are computed in
float32 and rounded once.
"""
