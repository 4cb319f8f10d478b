"""Where the time of a transformers model goes: a clock that knows in which module the program is.

Hooks on every module book the time to the innermost one's part, so that the parts add up to the whole.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Part of a module, by the end of its name; the first that fits.
_PARTS = (
    (("q_norm", "k_norm", "norm", "layernorm"), "norms"),
    (("q_proj", "k_proj", "v_proj", "o_proj"), "attention projections"),
    (("self_attn",), "attention (rope, cache, sdpa)"),
    (("rotary_emb",), "attention (rope, cache, sdpa)"),
    (("mlp.gate",), "router"),
    (("experts", "experts.act_fn"), "experts"),
    (("embed_tokens",), "embedding"),
    (("lm_head",), "lm_head"),
)
BETWEEN = "between modules (residuals, masks, Python)"
OUTSIDE = "generate loop (sampling, Python)"


class ModuleClock:
    """Seconds by part, while `running`."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []  # parts of the modules that the program is in, innermost last
        self._since = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        handles = []
        for name, module in self.model.named_modules():
            part = _part(name)
            handles.append(module.register_forward_pre_hook(lambda *_, part=part: self._enter(part)))
            handles.append(module.register_forward_hook(lambda *_: self._leave()))
        self._enter(OUTSIDE)
        try:
            yield
        finally:
            self._leave()
            for handle in handles:
                handle.remove()

    def snapshot(self) -> dict[str, float]:
        """Seconds by part so far."""
        self._book()
        return dict(self.seconds)

    def _enter(self, part: str) -> None:
        self._book()
        self._open.append(part)

    def _leave(self) -> None:
        self._book()
        self._open.pop()

    def _book(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def _part(name: str) -> str:
    for ends, part in _PARTS:
        if name.endswith(ends):
            return part
    return BETWEEN
