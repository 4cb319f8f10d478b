"""What dense.Attention must compute, in float64, and how far a correct engine may be from it.

The bounds are those of oracle.py, from the projections on. In order, u being fp32's unit roundoff:

* A projection is a sum of products (of_sums). Clamping to an interval adds nothing.
* y_i = w_i q_i / r with r^2 = mean(q^2) + epsilon: errors b of q move r by at most mean(|q| b) / r, relative
  to r by mean(|q| b) / r^2; the mean of n squares, a root, a division and two products round n / 2 + 6 times.
  Terms of second order are allowed for by 1 %.
* A rotation is two products and a sum; the scale one more product.
* What is in the cache is taken from there, since it was checked by itself: keys and values have no error.
* Adding a mask to a score rounds once.
* If all scores of a query are off by at most d, its weights, which add up to one, are off by a factor within
  exp(+-2 d). To d belong: the queries' errors times the keys, the sum's roundings, u |s - max| of the
  difference that exp gets, exp itself (2 ulp), and as much for every block of keys whose sums were brought to
  another maximum. Weights below the smallest normal number may be lost.
* Then there are two sums over the keys, one divided by the other, and the output projection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from moerun import Engine
from moerun.dense import Attention, CachedAttention, HeadNorm
from oracle import LAMBDA, TINY, UNIT_ROUNDOFF, Error, Expected, U, of_sums

SECOND_ORDER = 1.01
EXP_ROUNDINGS = 8  # two ulp, and what surrounds it
BLOCK = 256  # keys whose sums have one maximum


@dataclass(frozen=True)
class Near:
    """Numbers in float64, and how far computed ones may be from them; of one shape."""

    value: torch.Tensor
    bound: torch.Tensor

    def reshape(self, *shape: int) -> Near:
        return Near(self.value.reshape(shape), self.bound.reshape(shape))

    def expected(self) -> Expected:
        """As rows, to be checked."""
        rows = self.reshape(len(self.value), -1)
        return Expected(rows.value, rows.bound)


@dataclass(frozen=True)
class Module:
    """An attention layer: query [heads * dim, H], key, value [kv_heads * dim, H], output [H, heads * dim]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
    head_dim: int
    biases: tuple[torch.Tensor, ...] | None = None  # of query, key, value
    norm: HeadNorm | None = None
    clip: float | None = None
    sinks: torch.Tensor | None = None
    scale: float | None = None

    @property
    def heads(self) -> int:
        return len(self.query) // self.head_dim

    @property
    def kv_heads(self) -> int:
        return len(self.key) // self.head_dim

    def on(self, engine: Engine) -> Attention:
        biases = self.biases or (None, None, None)
        matrices = (self.query, self.key, self.value)
        return Attention(
            engine,
            *(engine.add_linear(m, b) for m, b in zip(matrices, biases, strict=True)),
            engine.add_linear(self.output),
            self.head_dim,
            norm=self.norm,
            clip=self.clip,
            sinks=self.sinks,
            scale=self.scale,
        )


@dataclass(frozen=True)
class Batch:
    """x [S, T, H]; cos, sin [S * T, rotated]; keys, values [S, kv_heads, room, dim], of which `past` are
    there; mask bool, or floats that are added to scores, [S, 1, T, at least past + T], or None."""

    x: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    past: int
    mask: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        return self.x.shape[0] * self.x.shape[1]

    def clone(self) -> Batch:
        """With a cache of its own."""
        return replace(self, keys=self.keys.clone(), values=self.values.clone())

    def run(self, attention: CachedAttention) -> torch.Tensor:
        """[S * T, H]; the cache has got the new keys and values."""
        out = attention.forward(self.x, self.cos, self.sin, self.keys, self.values, self.past, self.mask)
        assert out.shape == self.x.shape
        return out.flatten(0, 1)

    def new(self, cached: torch.Tensor) -> torch.Tensor:
        """What the step wrote to keys or values: [S * T, kv_heads * dim]."""
        tokens = self.x.shape[1]
        return cached[:, :, self.past : self.past + tokens].transpose(1, 2).reshape(self.rows, -1)

    def seen(self) -> torch.Tensor:
        """Which keys each token sees: bool [S, T, past + T]."""
        sequences, tokens = self.x.shape[:2]
        if self.mask is not None:
            mask = self.mask[:, 0, :, : self.past + tokens]
            return mask if mask.dtype is torch.bool else mask > torch.finfo(mask.dtype).min
        return (torch.arange(self.past + tokens) <= self.past + torch.arange(tokens)[:, None]).expand(
            sequences, -1, -1
        )

    def added(self) -> torch.Tensor | None:
        """What is added to scores, where it is not the least number: [S, T, past + T]."""
        if self.mask is None or self.mask.dtype is torch.bool:
            return None
        mask = self.mask[:, 0, :, : self.past + self.x.shape[1]].double()
        return mask.masked_fill(~self.seen(), 0.0)


def projected(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Near:
    w = weight.double()
    b = torch.zeros(len(w)).double() if bias is None else bias.double()
    return Near(x @ w.T + b, of_sums(w.shape[1] + 1, x.abs() @ w.abs().T + b.abs()).bound)


def normalised(x: Near, weight: torch.Tensor, epsilon: float) -> Near:
    """The RMS norm of the last dimension."""
    n = x.value.shape[-1]
    square = x.value.square().mean(-1, keepdim=True) + epsilon
    moved = (x.value.abs() * x.bound).mean(-1, keepdim=True) / square + (n / 2 + 6) * U
    factor = weight.double() / square.sqrt()
    return Near(x.value * factor, SECOND_ORDER * factor.abs() * (x.bound + x.value.abs() * moved))


def rotated(x: Near, cos: torch.Tensor, sin: torch.Tensor) -> Near:
    """x [rows, heads, dim] with its first elements turned by angles [rows, width]."""
    width = cos.shape[1]
    half = width // 2
    c, s = cos.double()[:, None], sin.double()[:, None]
    value, bound = x.value.clone(), x.bound.clone()
    turned = torch.cat((-x.value[..., half:width], x.value[..., :half]), -1)
    error = torch.cat((x.bound[..., half:width], x.bound[..., :half]), -1)
    size = x.value[..., :width].abs() * c.abs() + turned.abs() * s.abs()
    value[..., :width] = x.value[..., :width] * c + turned * s
    bound[..., :width] = x.bound[..., :width] * c.abs() + error * s.abs() + SECOND_ORDER * 2 * U * size
    return Near(value, bound)


def _projections(m: Module, b: Batch) -> tuple[Near, Near, Near]:
    """Queries, keys and values of the new tokens [rows, heads, dim], before any rotation."""
    x = b.x.double().flatten(0, 1)
    biases = m.biases or (None, None, None)
    parts = [projected(x, w, bias) for w, bias in zip((m.query, m.key, m.value), biases, strict=True)]
    by_row = m.norm is not None and len(m.norm.query) != m.head_dim
    if m.norm is not None and by_row:
        parts[:2] = (normalised(p, w, m.norm.epsilon) for p, w in zip(parts[:2], m.norm[:2], strict=True))
    if m.clip is not None:
        parts = [Near(p.value.clamp(-m.clip, m.clip), p.bound) for p in parts]
    query, key, value = (p.reshape(len(x), -1, m.head_dim) for p in parts)
    if m.norm is not None and not by_row:
        query, key = (normalised(p, w, m.norm.epsilon) for p, w in zip((query, key), m.norm[:2], strict=True))
    return query, key, value


def check_new(m: Module, b: Batch) -> None:
    """Fails if the keys and values that the step wrote are wrong."""
    _, key, value = _projections(m, b)
    rotated(key, b.cos, b.sin).expected().check(b.new(b.keys))
    value.expected().check(b.new(b.values))


def check_output(m: Module, b: Batch, got: torch.Tensor, attended_in_bf16: bool) -> None:
    """Fails if `got` [S * T, H] is wrong, given the keys and values that are in the cache now.

    A token that sees nothing only has to be finite. `attended_in_bf16`: the instruction set multiplies bf16
    pairs, and rounds what goes into the output projection.
    """
    assert got.isfinite().all()
    sequences, tokens = b.x.shape[:2]
    group, count = m.heads // m.kv_heads, b.past + tokens
    query = rotated(_projections(m, b)[0], b.cos, b.sin)
    scale = m.head_dim**-0.5 if m.scale is None else m.scale
    query = Near(query.value * scale, (query.bound + U * query.value.abs()) * scale)

    def by_head(t: torch.Tensor) -> torch.Tensor:
        return t.reshape(sequences, tokens, m.heads, m.head_dim).transpose(1, 2)

    q, q_bound = by_head(query.value), by_head(query.bound)  # [S, heads, T, dim]
    k, v = (t[:, :, :count].double().repeat_interleave(group, dim=1) for t in (b.keys, b.values))
    scores = q @ k.transpose(2, 3)  # [S, heads, T, count]
    off = q_bound @ k.abs().transpose(2, 3)
    off = off + of_sums(m.head_dim, q.abs() @ k.abs().transpose(2, 3) + off).bound
    attended = attended_by(Near(scores, off), v, b, m.sinks)
    if attended_in_bf16:
        attended = rounded_to_bf16(attended)
    check_rows(attended, m.output, b, got)


def attended_by(near: Near, v: torch.Tensor, b: Batch, sinks: torch.Tensor | None = None) -> Near:
    """Means of values [S, heads, count, dim], by scores [S, heads, T, count]: [S * T, heads * dim]."""
    sequences, tokens = b.x.shape[:2]
    scores, off, count = near.value, near.bound, v.shape[2]
    added = b.added()
    if added is not None:
        scores = scores + added[:, None]
        off = off + U * scores.abs()
    seen = b.seen()[:, None]
    scores, off = scores.masked_fill(~seen, -torch.inf), off.masked_fill(~seen, 0.0)
    if sinks is not None:
        sinks = sinks.double().view(1, -1, 1, 1).expand(sequences, -1, tokens, 1)
        scores, off = torch.cat((scores, sinks), -1), torch.cat((off, torch.zeros_like(sinks)), -1)
    most = scores.amax(-1, keepdim=True)
    spread = (most - scores).masked_fill(scores == -torch.inf, 0.0).amax(-1, keepdim=True)
    blocks = count // BLOCK + 4  # and the parts of a long sequence
    distance = off.amax(-1, keepdim=True) + U * spread + EXP_ROUNDINGS * blocks * U
    weights = scores.softmax(-1)[..., :count]
    attended, magnitude = weights @ v, weights @ v.abs()
    bound = magnitude * torch.expm1(2 * distance) + 2 * of_sums(count + 2, magnitude).bound
    bound = bound + count * TINY * v.abs().amax((2, 3), keepdim=True)

    def by_token(t: torch.Tensor) -> torch.Tensor:
        return t.transpose(1, 2).reshape(b.rows, -1)

    return Near(by_token(attended), by_token(bound))


def rounded_to_bf16(x: Near) -> Near:
    return Near(x.value, x.bound + UNIT_ROUNDOFF[torch.bfloat16] * (x.value.abs() + x.bound))


def check_rows(attended: Near, output: torch.Tensor, b: Batch, got: torch.Tensor) -> None:
    """Fails if `got` is not attended @ output.T for all tokens that see a key."""
    w = output.double()
    carried = Error.at_most(attended.bound).through(w)
    error = carried + of_sums(w.shape[1], attended.value.abs() @ w.abs().T + carried.worst)
    sees = b.seen().any(-1).reshape(-1)
    bound = torch.minimum(error.worst, LAMBDA * error.sigma)
    Expected((attended.value @ w.T)[sees], bound[sees]).check(got[sees])
