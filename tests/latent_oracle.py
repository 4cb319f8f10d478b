"""What dense.LatentAttention must compute, in float64, and how far a correct engine may be from it.

The formula is DeepSeek's: keys and values are expanded from the latents. The bounds are those of
attention_oracle.py. That the engine brings queries to the latents instead is a sum of products in another
order: of a query over a head's plain elements, then over the rank, both in fp32; the values likewise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attention_oracle import (
    Batch,
    Near,
    attended_by,
    check_rows,
    normalised,
    projected,
    rotated,
    rounded_to_bf16,
)
from moerun import Engine
from moerun.dense import LatentAttention, LatentProjections
from oracle import U, of_sums


@dataclass(frozen=True)
class LatentModule:
    """query [heads * dim, H] or [query_rank, H]; latent [rank + rotated, H]; expand [heads * (plain + value),
    rank]; output [H, heads * value]; query_up [heads * dim, query_rank] or None; norms."""

    query: torch.Tensor
    latent: torch.Tensor
    expand: torch.Tensor
    output: torch.Tensor
    heads: int
    rotated: int
    latent_norm: torch.Tensor
    query_up: torch.Tensor | None = None
    query_norm: torch.Tensor | None = None
    pairs: str = "halves"
    epsilon: float = 1e-5
    scale: float | None = None

    @property
    def rank(self) -> int:
        return len(self.latent) - self.rotated

    @property
    def head_dim(self) -> int:
        return len(self.query if self.query_up is None else self.query_up) // self.heads

    def on(self, engine: Engine) -> LatentAttention:
        matrices = (self.query, self.latent, self.expand, self.output, self.query_up)
        return LatentAttention(
            engine,
            LatentProjections(*(None if m is None else engine.add_linear(m) for m in matrices)),
            self.heads,
            self.rotated,
            self.latent_norm,
            query_norm=self.query_norm,
            epsilon=self.epsilon,
            pairs=self.pairs,
            scale=self.scale,
        )


def _turned(x: Near, m: LatentModule, b: Batch) -> Near:
    """x [rows, heads, rotated]"""
    if m.pairs == "halves":
        return rotated(x, b.cos, b.sin)
    half = m.rotated // 2
    apart = torch.arange(m.rotated).view(half, 2).T.flatten()  # even elements, then odd ones
    turned = rotated(Near(x.value[..., apart], x.bound[..., apart]), b.cos, b.sin)
    if m.pairs == "neighbours_to_halves":
        return turned
    back = apart.argsort()
    return Near(turned.value[..., back], turned.bound[..., back])


def check_new(m: LatentModule, b: Batch) -> None:
    """Fails if the latents and shared keys that the step wrote are wrong."""
    both = projected(b.x.double().flatten(0, 1), m.latent)
    latent, key = (Near(*(t[:, part] for t in (both.value, both.bound))) for part in _parts(m))
    normalised(latent, m.latent_norm, m.epsilon).expected().check(b.new(b.keys))
    _turned(key.reshape(b.rows, 1, -1), m, b).expected().check(b.new(b.values))


def _parts(m: LatentModule) -> tuple[slice, slice]:
    return slice(0, m.rank), slice(m.rank, None)


def _queries(m: LatentModule, b: Batch, query_in_bf16: bool) -> Near:
    """[rows, heads, head_dim], before any rotation."""
    query = projected(b.x.double().flatten(0, 1), m.query)
    if m.query_up is not None:
        assert m.query_norm is not None
        query = normalised(query, m.query_norm, m.epsilon)
        if query_in_bf16:
            query = rounded_to_bf16(query)
        up = projected(query.value, m.query_up)
        query = Near(up.value, (1 + U) * (up.bound + query.bound @ m.query_up.double().abs().T))
        query = Near(query.value, query.bound * 1.01)  # what the errors' own sums round
    return query.reshape(b.rows, m.heads, -1)


def check_output(
    m: LatentModule, b: Batch, got: torch.Tensor, query_in_bf16: bool, attended_in_bf16: bool
) -> None:
    """Fails if `got` [S * T, H] is wrong, given what is in the cache now.

    `query_in_bf16`, `attended_in_bf16`: the instruction set multiplies bf16 pairs, and rounds what goes into
    query_up and the output projection.
    """
    assert got.isfinite().all()
    sequences, tokens = b.x.shape[:2]
    count, plain = b.past + tokens, m.head_dim - m.rotated
    scale = m.head_dim**-0.5 if m.scale is None else m.scale
    query = _queries(m, b, query_in_bf16)
    turned = _turned(Near(query.value[..., plain:], query.bound[..., plain:]), m, b)

    def by_head(t: torch.Tensor) -> torch.Tensor:
        return t.reshape(sequences, tokens, m.heads, -1).transpose(1, 2)

    q, q_bound = by_head(query.value[..., :plain]), by_head(query.bound[..., :plain])  # [S, heads, T, plain]
    expand = m.expand.double().view(m.heads, -1, m.rank)
    w_key, w_value = expand[:, :plain], expand[:, plain:]
    latents, shared = (t[:, :, :count].double() for t in (b.keys, b.values))  # [S, 1, count, ...]
    keys = latents @ w_key.transpose(1, 2)  # [S, heads, count, plain]
    sizes = latents.abs() @ w_key.abs().transpose(1, 2)
    turned_q, turned_bound = by_head(turned.value), by_head(turned.bound)
    scores = scale * (q @ keys.transpose(2, 3) + turned_q @ shared.transpose(2, 3))
    off = q_bound @ sizes.transpose(2, 3) + turned_bound @ shared.abs().transpose(2, 3)
    size = q.abs() @ sizes.transpose(2, 3) + turned_q.abs() @ shared.abs().transpose(2, 3) + off
    terms = plain + m.rank + m.rotated + 4  # one sum, then the other; the scale
    off = scale * (off + 1.01 * of_sums(terms, size).bound)

    # Means of latents, then of values: |V| times the former's bound, and V's own sums.
    mean = attended_by(Near(scores, off), latents.expand(-1, m.heads, -1, -1), b).reshape(b.rows, m.heads, -1)
    value = torch.einsum("rhk,hvk->rhv", mean.value, w_value)
    carried = torch.einsum("rhk,hvk->rhv", mean.bound, w_value.abs())
    size = torch.einsum("rhk,hvk->rhv", mean.value.abs(), w_value.abs()) + carried
    attended = Near(value, carried + of_sums(m.rank, size).bound).reshape(b.rows, -1)
    if attended_in_bf16:
        attended = rounded_to_bf16(attended)
    check_rows(attended, m.output, b, got)
