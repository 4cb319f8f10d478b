"""Self-attention of a few tokens: from the hidden state to the hidden state, in one call to the core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from moerun import _core, tensors
from moerun.dense.linear import Linear

if TYPE_CHECKING:
    from moerun.engine import Engine


class HeadNorm(NamedTuple):
    """RMS norms of queries and keys after their projection.

    query, key
        ``[head_dim]``: every head by itself (Qwen3); ``[heads * head_dim]`` and ``[kv_heads * head_dim]``: a
        token's heads together (OLMoE).
    """

    query: Any
    key: Any
    epsilon: float


class Attention:
    """Grouped-query attention over a cache of keys and values (arXiv 2305.13245), all in fp32 but weights.

    Parameters
    ----------
    engine
        On whose threads it runs.
    query, key, value, output
        The projections: ``[heads * head_dim, H]``, twice ``[kv_heads * head_dim, H]``, and
        ``[H, heads * head_dim]``. The first three in one format.
    head_dim
        Width of a head.
    scale
        What scores are multiplied by; None: ``head_dim ** -0.5``.
    norm
        Of queries and keys, or None.
    clip
        Projections are clamped to ``[-clip, clip]``, after norms of a token's heads together and before those
        of every head by itself; None: they are not.
    sinks
        ``[heads]`` a score of each head that has no value (gpt-oss), or None.

    Raises
    ------
    ValueError
        Sizes that do not fit.
    """

    def __init__(
        self,
        engine: Engine,
        query: Linear,
        key: Linear,
        value: Linear,
        output: Linear,
        head_dim: int,
        *,
        scale: float | None = None,
        norm: HeadNorm | None = None,
        clip: float | None = None,
        sinks: Any = None,
    ) -> None:
        self.heads, self.kv_heads = query.outputs // max(head_dim, 1), key.outputs // max(head_dim, 1)
        self.head_dim = head_dim
        fits = (
            head_dim > 0
            and query.outputs == self.heads * head_dim
            and key.outputs == value.outputs == self.kv_heads * head_dim
            and self.kv_heads > 0
            and self.heads % self.kv_heads == 0
            and output.inputs == query.outputs
            and query.inputs == key.inputs == value.inputs
        )
        if not fits:
            shapes = ", ".join(f"[{m.outputs}, {m.inputs}]" for m in (query, key, value, output))
            raise ValueError(f"projections {shapes} do not make attention with heads of {head_dim}")
        if not query.format == key.format == value.format:
            formats = ", ".join(m.format for m in (query, key, value))
            raise ValueError(f"query, key and value must have one number format, got {formats}")
        self.engine = engine
        self.projections = (query, key, value, output)
        self._kept: list[Any] = []  # what the view points to

        def floats(array: Any, what: str, *lengths: int) -> int:
            if array is None:
                return 0
            copied = tensors.to_float32(tensors.on_host(tensors.as_array(array, what)))
            if copied.ndim != 1 or copied.shape[0] not in lengths:
                raise ValueError(f"{what} must be [{lengths[0]}], got {list(copied.shape)}")
            self._kept.append(copied)
            return int(copied.ctypes.data)

        kind, widths = _core.HeadNorm.none, (head_dim, head_dim)
        if norm is not None:
            kind = _core.HeadNorm.head
            if len(norm.query) != head_dim:
                kind, widths = _core.HeadNorm.row, (query.outputs, key.outputs)
        self.view = _core.AttentionView(
            query=query.view,
            key=key.view,
            value=value.view,
            output=output.view,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5 if scale is None else scale,
            norm=kind,
            query_norm=0 if norm is None else floats(norm.query, "norm.query", widths[0]),
            key_norm=0 if norm is None else floats(norm.key, "norm.key", widths[1]),
            epsilon=0.0 if norm is None else norm.epsilon,
            clip=clip or 0.0,
            sinks=floats(sinks, "sinks", self.heads),
        )

    def forward(self, x: Any, cos: Any, sin: Any, keys: Any, values: Any, past: int, mask: Any = None) -> Any:
        """Attention of new tokens, whose keys and values are written behind those that are there.

        Parameters
        ----------
        x
            ``[sequences, tokens, H]`` in host memory.
        cos, sin
            float32 ``[sequences * tokens, rotated]``, contiguous: elements i and i + rotated / 2 of a head
            are a pair that is turned (arXiv 2104.09864, as transformers lays it out); the rest of the head
            is not.
        keys, values
            ``[sequences, kv_heads, room, head_dim]`` of one float type, with heads of at least
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
        out = tensors.empty_like(rows, (sequences, tokens, self.projections[3].outputs))
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
            or rotated > self.head_dim
            or not tensors.dtype_name(cos) == tensors.dtype_name(sin) == "float32"
            or not (tensors.is_contiguous(cos) and tensors.is_contiguous(sin))
        ):
            raise ValueError(
                f"cos and sin must be float32 [{rows}, even, at most {self.head_dim}] and "
                f"contiguous, got {_describe(cos)} and {_describe(sin)}"
            )

    def check_cache(self, sequences: int, room: int, keys: Any, values: Any) -> None:
        """Raises ValueError if keys and values are not what forward wants, with room for so many."""
        shape = keys.shape
        if (
            values.shape != shape
            or values.dtype != keys.dtype
            or tensors.strides(values) != tensors.strides(keys)
            or tensors.strides(keys)[2:] != (self.head_dim, 1)
            or tuple(shape[:2]) != (sequences, self.kv_heads)
            or shape[2] < room
        ):
            raise ValueError(
                f"keys and values must be [{sequences}, {self.kv_heads}, at least {room}, "
                f"{self.head_dim}] of one float type with contiguous heads, got {_describe(keys)} and "
                f"{_describe(values)}"
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
