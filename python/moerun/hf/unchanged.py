"""Whether a model is still what an engine took: nobody watches its modules, and no part or tensor is another.

Asked before every step that skips the modules, so it must be quick: loops of the interpreter's own, about
3 us a layer. What is written through ``tensor.data`` is not noticed: torch does not count it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from itertools import chain, repeat
from typing import Any

import torch
from torch.nn.modules import module as torch_module

_version = operator.attrgetter("_version")


class Unchanged:
    """Notes what `root` and all modules in it consist of. Keeps their tensors, but not `root` itself."""

    def __init__(self, root: torch.nn.Module) -> None:
        modules = list(root.modules())
        self._hooks = [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
        self._hooks += [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._attributes = [m.__dict__ for m in modules[1:]]
        kinds: Iterable[Any] = chain.from_iterable((m._modules, m._parameters, m._buffers) for m in modules)
        self._parts = [parts for parts in kinds if parts]
        self._sizes = list(map(len, self._parts))
        self._values = list(chain.from_iterable(map(dict.values, self._parts)))
        self._tensors = [value for value in self._values if isinstance(value, torch.Tensor)]
        self._counted = [t for t in self._tensors if not t.is_inference()]  # torch counts writes to these
        self._places = list(map(torch.Tensor.data_ptr, self._tensors))
        self._versions = list(map(_version, self._counted))

    def holds(self) -> bool:
        """Whether calling the modules would do what it did when this was made."""
        return (
            not any(self._hooks)
            and not any(map(dict.__contains__, self._attributes, repeat("forward")))
            and list(map(len, self._parts)) == self._sizes
            and all(map(operator.is_, chain.from_iterable(map(dict.values, self._parts)), self._values))
            and list(map(torch.Tensor.data_ptr, self._tensors)) == self._places
            and list(map(_version, self._counted)) == self._versions
        )
