"""Attention of many queries, as a prompt needs it: what follows projections and rotation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moerun import tensors
from moerun.dense.attention import place_mask

if TYPE_CHECKING:
    from moerun.engine import Engine


def prompt_attention(
    engine: Engine,
    queries: Any,
    keys: Any,
    values: Any,
    *,
    scale: float | None = None,
    mask: Any = None,
    sinks: Any = None,
) -> Any:
    """``softmax(scale * queries @ keys.T + mask) @ values`` by online softmax (arXiv 2205.14135).

    Products of bf16 numbers where they are bf16 (weights rounded to it, too), else of fp32; sums in fp32.

    Parameters
    ----------
    queries
        ``[sequences, heads, tokens, head_dim]`` in host memory, rows contiguous, strides as they may be.
    keys, values
        ``[sequences, kv_heads, keys, head_dim]`` and ``[..., value_dim]`` of the same type; heads of queries
        that share one lie side by side.
    scale
        None: ``head_dim ** -0.5``.
    mask
        ``[sequences or 1, 1, tokens, at least keys]``: bool, True where a token sees a key, or floats that
        are added; None: the last token sees all keys, each before it one less. A token that sees nothing gets
        some mean of values, or zeros.
    sinks
        float32 ``[heads]`` contiguous: a score of each head that has no value (gpt-oss); None: none.

    Returns
    -------
    ``[sequences, tokens, heads, value_dim]`` of the queries' type, contiguous.

    Raises
    ------
    ValueError
        What does not fit.
    RuntimeError
        The engine is closed.
    """
    sequences, heads, tokens, head_dim = queries.shape
    kv_heads, count = keys.shape[1:3]
    value_dim = values.shape[3]
    fits = (
        tuple(keys.shape) == (sequences, kv_heads, count, head_dim)
        and tuple(values.shape) == (sequences, kv_heads, count, value_dim)
        and heads % max(kv_heads, 1) == 0
        and min(kv_heads, head_dim, value_dim) > 0
        and queries.dtype == keys.dtype == values.dtype
        and all(tensors.strides(t)[3] == 1 or t.shape[3] == 1 for t in (queries, keys, values))
    )
    if not fits:
        shapes = ", ".join(f"{tensors.dtype_name(t)} {list(t.shape)}" for t in (queries, keys, values))
        raise ValueError(f"queries, keys and values must fit and have contiguous rows, got {shapes}")
    if mask is None and tokens > count:
        raise ValueError(f"without a mask the tokens are the last of the keys, got {tokens} and {count}")
    if sinks is not None and (
        tuple(sinks.shape) != (heads,)
        or tensors.dtype_name(sinks) != "float32"
        or not tensors.is_contiguous(sinks)
    ):
        raise ValueError(
            f"sinks must be float32 [{heads}], got {tensors.dtype_name(sinks)} {list(sinks.shape)}"
        )
    if mask is not None and mask.shape[0] == 1 and sequences > 1:
        mask_at, (_, of_token), added = place_mask(mask, (1, 1, tokens), count)
        mask_strides = (0, of_token)
    else:
        mask_at, mask_strides, added = place_mask(mask, (sequences, 1, tokens), count)
    kind = tensors.float_type(queries, "queries")
    out = tensors.empty_like(queries, (sequences, tokens, heads, value_dim))
    engine._core.attend_prompt(
        [sequences, heads, kv_heads, tokens, count, head_dim, value_dim],
        kind,
        *((tensors.address(t), *tensors.strides(t)[:3]) for t in (queries, keys, values)),
        (tensors.address(out), tokens * heads * value_dim, value_dim, heads * value_dim),
        head_dim**-0.5 if scale is None else scale,
        mask_at,
        mask_strides,
        added,
        0 if sinks is None else tensors.address(sinks),
    )
    return out
