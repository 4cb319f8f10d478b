"""Makes Triton's interpreter compute what the language says, for the tests in this folder.

`prepare` must be called before triton is first imported in the process. Three of the interpreter's ways are
replaced (seen in triton 3.6 and 3.7):

* bf16 lives in it as the bits of a uint16: products (tl.dot) and conversions from integers work on the bits.
* Conversions to bf16 cut digits off, where hardware rounds to nearest even.
* numpy from 2.4 on refuses to take an array of one element for an integer, as loop bounds are.

And one for speed: every call of a function within a kernel replaces and restores the whole language, which
takes most of the time of small kernels. Here a call replaces only what none around it has.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def prepare() -> None:
    """Turns the interpreter on and mends it."""
    if "triton" in sys.modules:
        raise RuntimeError("triton was imported before the interpreter was chosen")
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle_type = interpreter.InterpreterBuilder, interpreter.TensorHandle
    dot, cast = builder.create_dot, builder.cast_impl

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar == tl.bfloat16:
            return handle_type((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
        return handle

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        return dot(self, widened(a), widened(b), d, *options)

    def to_bf16(self: Any, source: Any) -> Any:
        bits = source.data.astype(np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = np.where(np.isnan(source.data), 0x7FC0, rounded)
        return handle_type(rounded.astype(np.uint16), tl.bfloat16)

    def convert(self: Any, source: Any, target: Any) -> Any:
        if target.scalar == tl.bfloat16 and source.dtype.scalar != tl.bfloat16:
            return to_bf16(self, source)
        return cast(self, source, target)

    builder.create_dot = create_dot
    builder.cast_impl = convert  # the other conversions, integers' included, call it by name
    for name in ("create_si_to_fp", "create_ui_to_fp", "create_fp_trunc"):
        setattr(builder, name, convert)

    interpreter._patch_lang = _patch_each_once(interpreter._patch_lang, (tl, tl.core))

    if tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
        patch = interpreter._patch_lang_tensor

        def patch_tensor(tensor: Any, *rest: Any) -> Any:
            scope = patch(tensor, *rest)
            tensor.__index__ = lambda self: int(np.asarray(self.handle.data).reshape(-1)[0])
            return scope

        interpreter._patch_lang_tensor = patch_tensor


class _NothingToRestore:
    def restore(self) -> None:
        pass


def _patch_each_once(patch: Callable[[Any], Any], languages: tuple[Any, ...]) -> Callable[[Any], Any]:
    patched: list[Any] = []  # modules of the language, as kernels know them

    def patch_once(function: Any) -> Any:
        seen = [value for value in function.__globals__.values() if inspect.ismodule(value)]
        new = [language for language in languages if language in seen and language not in patched]
        if not new:
            return _NothingToRestore()
        scope = patch(function)
        patched.extend(new)
        restore = scope.restore

        def leave() -> None:
            restore()
            for language in new:
                patched.remove(language)

        scope.restore = leave
        return scope

    return patch_once
