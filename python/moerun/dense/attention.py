"""Grouped-query attention of a few tokens: from the hidden state to the hidden state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from moerun import _core
from moerun.dense.cached_attention import CachedAttention, CachedRows, Floats
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


class Attention(CachedAttention):
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
        self.cached = CachedRows(self.kv_heads, head_dim, head_dim, 0, head_dim)
        self._floats = floats = Floats()
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
            query_norm=0 if norm is None else floats.copy(norm.query, "norm.query", widths[0]),
            key_norm=0 if norm is None else floats.copy(norm.key, "norm.key", widths[1]),
            epsilon=0.0 if norm is None else norm.epsilon,
            clip=clip or 0.0,
            sinks=0 if sinks is None else floats.copy(sinks, "sinks", self.heads),
        )
