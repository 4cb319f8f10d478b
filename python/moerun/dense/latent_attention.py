"""Multi-head latent attention of a few tokens: from the hidden state to the hidden state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from moerun import _core
from moerun.dense.cached_attention import CachedAttention, CachedRows, Floats
from moerun.dense.linear import Linear

if TYPE_CHECKING:
    from moerun.engine import Engine

PAIRS = ("halves", "neighbours", "neighbours_to_halves")


class LatentProjections(NamedTuple):
    """The matrices of multi-head latent attention.

    query
        ``[heads * head_dim, H]``, or ``[query_rank, H]`` whose result `query_up` expands after a norm.
    latent
        ``[rank + rotated, H]``: what a token leaves for all heads, and a key of theirs that is rotated. Of
        the format of `query`.
    expand
        ``[heads * (head_dim - rotated + value_dim), rank]``: by head, the rest of its keys, then its values.
        Of a float format, without bias: it is read by columns too.
    output
        ``[H, heads * value_dim]``.
    query_up
        ``[heads * head_dim, query_rank]``, or None.
    """

    query: Linear
    latent: Linear
    expand: Linear
    output: Linear
    query_up: Linear | None = None


class LatentAttention(CachedAttention):
    """DeepSeek's attention over a cache of latents (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    The keys of a cache are latents ``[sequences, 1, room, rank]`` after their norm, its values the rotated
    keys ``[sequences, 1, room, rotated]``. They are not expanded: queries are brought to them.

    Parameters
    ----------
    engine
        On whose threads it runs.
    matrices
        See LatentProjections.
    heads, rotated
        Number of heads; how many elements of a query, its last, are rotated.
    latent_norm
        ``[rank]`` of any float type; copied. Weights of an RMS norm.
    query_norm
        ``[query_rank]``, if there is `query_up`.
    epsilon
        Of both norms.
    pairs
        Which elements turn together: "halves" (i and i + rotated / 2), "neighbours" (2 i and 2 i + 1), or
        "neighbours_to_halves", which end where the first has them.
    scale
        What scores are multiplied by; None: ``head_dim ** -0.5``.

    Raises
    ------
    ValueError
        Sizes or formats that do not fit.
    """

    def __init__(
        self,
        engine: Engine,
        matrices: LatentProjections,
        heads: int,
        rotated: int,
        latent_norm: Any,
        *,
        query_norm: Any = None,
        epsilon: float = 1e-6,
        pairs: str = "halves",
        scale: float | None = None,
    ) -> None:
        query, latent, expand, output, query_up = matrices
        wide = query if query_up is None else query_up
        head_dim, rank = wide.outputs // max(heads, 1), latent.outputs - rotated
        value_dim = expand.outputs // max(heads, 1) - head_dim + rotated
        fits = (
            heads > 0
            and 0 < rotated < head_dim
            and rotated % 2 == 0
            and rank > 0
            and value_dim > 0
            and wide.outputs == heads * head_dim
            and expand.outputs == heads * (head_dim - rotated + value_dim)
            and output.inputs == heads * value_dim
            and expand.inputs == rank
            and query.inputs == latent.inputs
            and (query_up is None or query_up.inputs == query.outputs)
        )
        if not fits:
            shapes = ", ".join(
                f"{name} [{m.outputs}, {m.inputs}]" for name, m in matrices._asdict().items() if m
            )
            raise ValueError(f"{shapes} do not make latent attention of {heads} heads with {rotated} rotated")
        if query.format != latent.format:
            raise ValueError(
                f"query and latent must have one number format, got {query.format}, {latent.format}"
            )
        if expand.weight is None or expand.has_bias:
            raise ValueError("expand must not be quantised or have a bias: it is read by columns too")
        if pairs not in PAIRS:
            raise ValueError(f"pairs must be one of {', '.join(PAIRS)}; got {pairs!r}")
        if (query_norm is None) != (query_up is None):
            raise ValueError("query_norm and query_up belong together; pass both or none")
        self.engine = engine
        self.projections = tuple(m for m in (query, query_up, latent, expand, output) if m is not None)
        self.cached = CachedRows(1, rank, rotated, rotated, rotated)
        self._floats = floats = Floats()
        self.view = _core.AttentionView(
            query=query.view,
            query_up=None if query_up is None else query_up.view,
            latent=latent.view,
            expand=expand.view,
            output=output.view,
            heads=heads,
            head_dim=head_dim,
            rank=rank,
            rotated=rotated,
            value_dim=value_dim,
            pairs=getattr(_core.Pairs, pairs),
            scale=head_dim**-0.5 if scale is None else scale,
            query_norm=0 if query_norm is None else floats.copy(query_norm, "query_norm", query.outputs),
            latent_norm=floats.copy(latent_norm, "latent_norm", rank),
            epsilon=epsilon,
        )
