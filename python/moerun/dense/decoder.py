"""Decoder layers of a few tokens, and what follows them, in one call to the core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moerun import _core, tensors
from moerun.dense.cached_attention import CachedAttention, place_mask
from moerun.dense.linear import Linear
from moerun.dense.norm import RmsNorm
from moerun.dense.router import Router

if TYPE_CHECKING:
    from moerun.engine import Layer


class DecoderLayer:
    """``y = x + attention(norm(x))``, then ``y + experts(norm(y))``: Llama's layer with experts.

    Parameters
    ----------
    attention_norm, attention, expert_norm, router, experts
        The parts, all of one engine without a GPU.

    Raises
    ------
    ValueError
        Parts that do not fit each other.
    """

    def __init__(
        self,
        attention_norm: RmsNorm,
        attention: CachedAttention,
        expert_norm: RmsNorm,
        router: Router,
        experts: Layer,
    ) -> None:
        hidden = attention.projections[0].inputs
        widths = (
            len(attention_norm.weight),
            attention.projections[-1].outputs,
            len(expert_norm.weight),
            router.gate.inputs,
            experts.spec.hidden_size,
        )
        if set(widths) != {hidden}:
            raise ValueError(f"all parts must have one hidden size, got {[hidden, *widths]}")
        if router.gate.outputs != experts.spec.num_experts:
            raise ValueError(
                f"the router has {router.gate.outputs} experts, the layer {experts.spec.num_experts}"
            )
        if router.float32_logits:
            raise ValueError(
                "the logits of a decoder layer's router have x's type; got one with float32 logits"
            )
        self.parts = (attention_norm, attention, expert_norm, router, experts)
        self.attention = attention
        self.experts = experts
        self.view = _core.DecoderView(
            attention_norm.weight.ctypes.data,
            attention_norm.epsilon,
            attention.view,
            expert_norm.weight.ctypes.data,
            expert_norm.epsilon,
            router.view,
        )


class Caches:
    """Keys and values of all layers of a decoder, in memory with room for more. Made by `Decoder.caches`.

    Attributes
    ----------
    sequences, room
        How many sequences they are of, and how many keys fit.
    """

    def __init__(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        self.pairs = tuple(pairs)  # keeps the memory
        self.sequences = int(pairs[0][0].shape[0])
        self.room = min(int(keys.shape[2]) for keys, _ in pairs)
        self.view = _core.Caches(
            [
                _core.KeyValues(
                    tensors.address(keys),
                    tensors.address(values),
                    tensors.float_type(keys, "keys"),
                    (tensors.strides(keys)[0], tensors.strides(keys)[1]),
                )
                for keys, values in pairs
            ]
        )


class Decoder:
    """Decoder layers one after another; then a norm, and a head over the vocabulary, where there are any.

    Parameters
    ----------
    layers
        At least one, all of one engine without a GPU.
    norm, head
        Of the same engine. A head needs a norm.

    Raises
    ------
    ValueError
        Parts that do not fit each other.
    """

    def __init__(
        self, layers: Sequence[DecoderLayer], norm: RmsNorm | None = None, head: Linear | None = None
    ) -> None:
        if not layers:
            raise ValueError("a decoder needs at least one layer")
        self.layers = tuple(layers)
        self.engine = layers[0].attention.engine
        if any(layer.attention.engine is not self.engine for layer in layers):
            raise ValueError("all layers of a decoder must be of one engine")
        self.hidden = layers[0].attention.projections[0].inputs
        widths = [layer.attention.projections[0].inputs for layer in layers]
        widths += [len(norm.weight)] if norm is not None else []
        widths += [head.inputs] if head is not None else []
        if set(widths) != {self.hidden}:
            raise ValueError(f"all parts must have one hidden size, got {widths}")
        if head is not None and norm is None:
            raise ValueError("a head needs a norm before it")
        self.has_head = head is not None
        self.outputs = self.hidden if head is None else head.outputs
        self._after = (norm, head)  # keeps their memory
        self._stack = _core.DecoderStack(
            [layer.experts._core for layer in layers],
            [layer.view for layer in layers],
            None if norm is None else (norm.weight.ctypes.data, norm.epsilon),
            None if head is None else head.view,
        )

    def caches(self, pairs: Sequence[tuple[Any, Any]]) -> Caches:
        """Keys and values of every layer, each ``[sequences, kv_heads, room, head_dim]``, heads contiguous.

        Raises ValueError if they do not fit the layers.
        """
        if len(pairs) != len(self.layers):
            raise ValueError(f"expected keys and values of {len(self.layers)} layers, got {len(pairs)}")
        sequences = pairs[0][0].shape[0]
        for layer, (keys, values) in zip(self.layers, pairs, strict=True):
            layer.attention.check_cache(sequences, 0, keys, values)
        return Caches(pairs)

    def forward(
        self, x: Any, cos: Any, sin: Any, caches: Caches, past: int, mask: Any = None, kept: int | None = None
    ) -> Any:
        """As Attention.forward, of all layers. Activations are rounded to x's type between the parts.

        `kept`: of how many tokens at the end of each sequence the result is returned; None: of all.

        Returns
        -------
        ``[sequences, kept, outputs]`` of x's kind and type.

        Raises
        ------
        ValueError
            Something does not fit.
        RuntimeError
            The engine is closed or has a GPU.
        """
        sequences, tokens = self._check(x, caches, past)
        kept = tokens if kept is None else kept
        if not 1 <= kept <= tokens:
            raise ValueError(f"kept must be 1 to {tokens}, got {kept}")
        x_type = tensors.float_type(x, "x")
        rows = tensors.with_contiguous_rows(x.reshape(-1, self.hidden))
        self.layers[0].attention.check_rotation(cos, sin, sequences * tokens)
        out = tensors.empty_like(rows, (sequences, kept, self.outputs))
        mask_at, mask_strides, added = place_mask(mask, (sequences, 1, tokens), past + tokens)
        self.engine._core.decode(
            self._stack,
            sequences,
            tokens,
            (tensors.address(rows), x_type, tensors.strides(rows)[0]),
            (tensors.address(out), x_type, self.outputs),
            kept,
            tensors.address(cos),
            tensors.address(sin),
            cos.shape[1],
            caches.view,
            past,
            mask_at,
            mask_strides,
            added,
        )
        return out

    def _check(self, x: Any, caches: Caches, past: int) -> tuple[int, int]:
        """Sequences and tokens of x. Raises ValueError."""
        if x.ndim != 3 or x.shape[2] != self.hidden or not x.shape[1]:
            raise ValueError(f"x must be [sequences, tokens, {self.hidden}], got {list(x.shape)}")
        sequences, tokens = x.shape[:2]
        if len(caches.pairs) != len(self.layers) or caches.sequences != sequences:
            raise ValueError(
                f"expected caches of {len(self.layers)} layers and {sequences} sequences, "
                f"got {len(caches.pairs)} and {caches.sequences}"
            )
        if past < 0 or past + tokens > caches.room:
            raise ValueError(f"{past} keys and {tokens} new ones do not fit in caches of {caches.room}")
        return sequences, tokens


class TokenRun:
    """One sequence that a decoder continues token by token, with next to nothing around the core's call.

    What it is made of is checked once, and must stay as it is.

    Parameters
    ----------
    decoder
        With a head.
    embedding
        ``[tokens, H]`` of the activations' type, contiguous: what the decoder begins with.
    cos, sin
        float32 ``[positions, rotated]``, contiguous, as for Attention.forward.
    caches
        Of one sequence.
    length
        How many tokens are in the caches.

    Attributes
    ----------
    length
        As above, now.
    layers
        Of the decoder.
    logits
        ``[outputs]`` of the embedding's kind and type, of the latest token.

    Raises
    ------
    ValueError
        What does not fit.
    """

    def __init__(
        self, decoder: Decoder, embedding: Any, cos: Any, sin: Any, caches: Caches, length: int
    ) -> None:
        if not decoder.has_head:
            raise ValueError("a run over tokens needs a decoder with a head")
        if (
            embedding.ndim != 2
            or embedding.shape[1] != decoder.hidden
            or not tensors.is_contiguous(embedding)
        ):
            raise ValueError(
                f"embedding must be [tokens, {decoder.hidden}] and contiguous, got {list(embedding.shape)}"
            )
        decoder.layers[0].attention.check_rotation(cos, sin, cos.shape[0])
        if caches.sequences != 1 or len(caches.pairs) != len(decoder.layers):
            raise ValueError("a run over tokens needs caches of one sequence for every layer")
        self.length, self.layers = length, len(decoder.layers)
        self.logits = tensors.empty_like(embedding, (decoder.outputs,))
        self._tokens = int(embedding.shape[0])
        self._most = min(int(cos.shape[0]), caches.room)
        self._kept = (decoder, embedding, cos, sin, caches)  # keeps the memory
        self._logits_at = tensors.address(self.logits)
        self._caches = caches.view
        self._stack = decoder._stack
        self._next = decoder.engine._core.decode_next
        self._tables = _core.TokenTables(
            tensors.address(embedding),
            tensors.float_type(embedding, "embedding"),
            tensors.address(cos),
            tensors.address(sin),
            cos.shape[1],
        )

    def next(self, token: int) -> int:
        """Runs one more token, and returns the most probable next one.

        Raises ValueError if there is no such token or no room, RuntimeError if the engine is closed.
        """
        past = self.length
        if not (0 <= token < self._tokens and 0 <= past < self._most):
            raise ValueError(
                f"token {token} at position {past} is outside of {self._tokens} tokens or "
                f"{self._most} positions"
            )
        largest = self._next(self._stack, self._tables, token, self._caches, past, self._logits_at)
        self.length = past + 1
        return largest
