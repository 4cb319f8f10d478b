"""The GPU kernels: written in Triton, compiled ahead of time, launched from C++ (see contract.py)."""
