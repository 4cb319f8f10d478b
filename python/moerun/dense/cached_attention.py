"""What every attention over a cache is for its caller: what it takes and returns, and the core's batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from moerun import _core, tensors
from moerun.dense.linear import Linear

if TYPE_CHECKING:
    from moerun.engine import Engine


class CachedRows(NamedTuple):
    """What a layer keeps of a token, and what of it is rotated."""

    heads: int
    key_width: int
    value_width: int
    least_rotated: int
    most_rotated: int

    @property
    def widths_of_rotation(self) -> str:
        if self.least_rotated == self.most_rotated:
            return str(self.most_rotated)
        return f"even, at most {self.most_rotated}"


class CachedAttention:
    """Attention of new tokens over a cache of keys and values, in one call to the core.

    Attributes
    ----------
    projections
        What it multiplies by: the first reads x, the last gives what is returned.
    cached
        The shape of its cache.
    """

    engine: Engine
    projections: tuple[Linear, ...]
    cached: CachedRows
    view: _core.AttentionView

    def forward(self, x: Any, cos: Any, sin: Any, keys: Any, values: Any, past: int, mask: Any = None) -> Any:
        """Attention of new tokens, whose keys and values are written behind those that are there.

        Parameters
        ----------
        x
            ``[sequences, tokens, H]`` in host memory.
        cos, sin
            float32 ``[sequences * tokens, rotated]``, contiguous: of the pairs of elements that are turned
            (arXiv 2104.09864), the angle of pair i in columns i and i + rotated / 2.
        keys, values
            ``[sequences, heads, room, width]`` as `cached` says, of one float type, with at least
            ``past + tokens`` contiguous rows.
        past
            How many keys are there.
        mask
            ``[sequences, 1, tokens, at least past + tokens]``: bool, True where a token sees a key, or floats
            that are added to scores; None: each sees those up to its own.

        Returns
        -------
        Like `x`.

        Raises
        ------
        ValueError
            What does not fit.
        RuntimeError
            The engine is closed.
        """
        self._check(x, cos, sin, keys, values, past)
        sequences, tokens, width = x.shape
        x_type = tensors.float_type(x, "x")
        rows = tensors.with_contiguous_rows(x.reshape(-1, width))
        out = tensors.empty_like(rows, (sequences, tokens, self.projections[-1].outputs))
        mask_at, mask_strides, added = place_mask(mask, (sequences, 1, tokens), past + tokens)
        of_keys = tensors.strides(keys)
        batch = _core.AttentionBatch(
            sequences,
            tokens,
            (tensors.address(rows), x_type, tensors.strides(rows)[0]),
            (tensors.address(out), x_type, out.shape[2]),
            tensors.address(cos),
            tensors.address(sin),
            cos.shape[1],
            tensors.address(keys),
            tensors.address(values),
            tensors.float_type(keys, "keys"),
            (of_keys[0], of_keys[1]),
            past,
            mask_at,
            mask_strides,
            added,
        )
        self.engine._core.attention(self.view, batch)
        return out

    def _check(self, x: Any, cos: Any, sin: Any, keys: Any, values: Any, past: int) -> None:
        """Raises ValueError for what would read or write outside of the arrays."""
        if x.ndim != 3 or x.shape[2] != self.projections[0].inputs:
            raise ValueError(
                f"x must be [sequences, tokens, {self.projections[0].inputs}], got {list(x.shape)}"
            )
        sequences, tokens = x.shape[:2]
        self.check_rotation(cos, sin, sequences * tokens)
        if past < 0:
            raise ValueError(f"past must not be negative, got {past}")
        self.check_cache(sequences, past + tokens, keys, values)

    def check_rotation(self, cos: Any, sin: Any, rows: int) -> None:
        """Raises ValueError if they are not what forward wants for so many tokens."""
        rotated = cos.shape[-1]
        if (
            tuple(cos.shape) != (rows, rotated)
            or cos.shape != sin.shape
            or rotated % 2
            or not self.cached.least_rotated <= rotated <= self.cached.most_rotated
            or not tensors.dtype_name(cos) == tensors.dtype_name(sin) == "float32"
            or not (tensors.is_contiguous(cos) and tensors.is_contiguous(sin))
        ):
            raise ValueError(
                f"cos and sin must be float32 [{rows}, {self.cached.widths_of_rotation}] and "
                f"contiguous, got {_describe(cos)} and {_describe(sin)}"
            )

    def check_cache(self, sequences: int, room: int, keys: Any, values: Any) -> None:
        """Raises ValueError if keys and values are not what forward wants, with room for so many."""
        if not self._is_cache(keys, values, (sequences, room)):
            heads, key_width, value_width = self.cached[:3]
            raise ValueError(
                f"keys and values must be [{sequences}, {heads}, at least {room}, {key_width}] and "
                f"[..., {value_width}] of one float type with contiguous heads and as much room, got "
                f"{_describe(keys)} and {_describe(values)}"
            )

    def _is_cache(self, keys: Any, values: Any, least: tuple[int, int]) -> bool:
        """Whether keys and values are a cache of `least` sequences and columns."""
        heads, key_width, value_width = self.cached[:3]
        if keys.ndim != 4 or values.ndim != 4 or keys.shape[:3] != values.shape[:3]:
            return False
        of_keys, of_values = tensors.strides(keys), tensors.strides(values)
        return bool(
            keys.dtype == values.dtype
            and (keys.shape[3], values.shape[3]) == (key_width, value_width)
            and of_keys[2:] == (key_width, 1)
            and of_values[2:] == (value_width, 1)
            and of_keys[0] * value_width == of_values[0] * key_width
            and of_keys[1] * value_width == of_values[1] * key_width
            and tuple(keys.shape[:2]) == (least[0], heads)
            and keys.shape[2] >= least[1]
        )


def _describe(array: Any) -> str:
    return f"{tensors.dtype_name(array)} {list(array.shape)} with strides {list(tensors.strides(array))}"


def place_mask(mask: Any, shape: tuple[int, int, int], keys: int) -> tuple[int, tuple[int, int], Any]:
    """Address of a mask, its elements from sequence to sequence and from token to token, type if added."""
    if mask is None:
        return 0, (0, 0), None
    strides = tensors.strides(mask)
    if tuple(mask.shape[:3]) != shape or mask.shape[3] < keys or strides[3] != 1:
        raise ValueError(
            f"mask must be {[*shape, keys]} with contiguous rows, "
            f"got {list(mask.shape)} with strides {strides}"
        )
    added = (
        None if tensors.dtype_name(mask) == "bool" else tensors.float_type(mask, "a mask that is not bool")
    )
    return tensors.address(mask), (strides[0], strides[2]), added


class Floats:
    """Arrays of float32 that the core reads."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def copy(self, array: Any, what: str, length: int) -> int:
        """The address of a copy of `array` ``[length]``; raises ValueError if it is not."""
        copied = tensors.to_float32(tensors.on_host(tensors.as_array(array, what)))
        if copied.ndim != 1 or copied.shape[0] != length:
            raise ValueError(f"{what} must be [{length}], got {list(copied.shape)}")
        self._kept.append(copied)
        return int(copied.ctypes.data)
