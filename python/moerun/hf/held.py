"""What a module of a transformers model holds of an engine: a layer, and the operator's handle for it."""

from __future__ import annotations

from typing import Any, Generic, NoReturn, TypeVar

T = TypeVar("T")


class Held(Generic[T]):
    """Copies of the module share it; it cannot be pickled, as the engine belongs to its process."""

    def __init__(self, value: T, handle: int) -> None:
        self.value = value
        self.handle = handle

    def __deepcopy__(self, memo: dict[int, Any]) -> Held[T]:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a model whose experts live in moerun's engine cannot be pickled, as the engine belongs to "
            "its process; load it where it is needed, with moerun.hf.from_pretrained"
        )
