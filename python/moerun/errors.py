"""Exceptions that users may want to catch. Wrong arguments are ValueError or TypeError, as everywhere."""

from __future__ import annotations


class MoerunError(Exception):
    """Base of the package's own exceptions."""


class CheckpointError(MoerunError):
    """A checkpoint cannot be read; the message names file, tensor, what was expected and what was found."""


class KernelError(MoerunError):
    """The GPU kernels cannot be had: triton is missing, the GPU is none that they support, or one of them
    does not compile. The message says which, and what to do."""


class GpuError(MoerunError):
    """There is no GPU to use, or a call to the CUDA driver failed; the message says which and what to do."""


class GpuOutOfMemoryError(GpuError):
    """Device memory, or host memory that can be page-locked, does not suffice."""
