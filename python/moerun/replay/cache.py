"""The cache of one layer's experts in the replay: which are resident, and which leaves for another one.

The values by which experts leave come from the engine's own policies (moerun.policy.CacheValues); "static"
never changes, and "belady" knows the future: Belady's MIN, the upper bound on hits.
"""

from __future__ import annotations

import numpy as np

from moerun.policy import CACHE_POLICIES, TUNED_ALPHA, CacheValues

REPLAY_CACHES = (*CACHE_POLICIES, "static", "belady")
FREE = -1  # a slot that holds nothing yet


class LayerCache:
    """At most ``slots`` of a layer's experts.

    Parameters
    ----------
    policy
        One of ``REPLAY_CACHES``.
    usage
        ``[E]``: how often each expert was used before; the cache starts with the most used ones.
    next_use
        Only for "belady": ``[S, E]``, the number of the next step after s that uses an expert.
    alpha
        Of "mrs" and "recent".
    keeps_copies
        Begins empty, and insert() does not ask what an expert is worth.
    pool
        The caches of all layers, this one too, which take slots from each other: what they hold together is
        bounded by the sum of their ``slots``. Goes with ``keeps_copies``. None: a layer has its own slots.
    """

    def __init__(
        self,
        policy: str,
        slots: int,
        top_k: int,
        usage: np.ndarray,
        next_use: np.ndarray | None = None,
        alpha: float = TUNED_ALPHA,
        keeps_copies: bool = False,
        pool: list[LayerCache] | None = None,
    ) -> None:
        if policy not in REPLAY_CACHES:
            raise ValueError(f"cache policy {policy!r} is unknown; known: {', '.join(REPLAY_CACHES)}")
        if policy == "belady" and next_use is None:
            raise ValueError('cache policy "belady" needs next_use')
        self.policy = policy
        self.slots = slots
        self.resident = np.zeros(len(usage), bool)
        if not keeps_copies:
            self.resident[np.argsort(-usage, kind="stable")[:slots]] = True
        self._keeps_copies = keeps_copies
        self._pool = pool
        if pool is not None:
            pool.append(self)
        self._next_use = next_use
        self._values = CacheValues(policy, len(usage), top_k, alpha) if policy in CACHE_POLICIES else None
        self._step = 0

    def observe(self, step: int, loads: np.ndarray, scores: np.ndarray) -> None:
        """What the router chose in a step: ``loads [E]`` int32 and ``scores [tokens, E]``."""
        self._step = step
        if self._values is not None:
            self._values.observe(loads, scores)

    @property
    def values(self) -> np.ndarray:
        """``[E]``: what each expert is worth keeping; comparable within the layer."""
        if self._values is not None:
            return self._values.values
        if self._next_use is not None:
            return -self._next_use[self._step].astype(float)
        return np.zeros(len(self.resident))

    def victims(self, pinned: np.ndarray, count: int) -> list[int]:
        """Up to ``count`` slots to give up, the one worth least first; ``FREE`` for empty ones."""
        if self.policy == "static" or self.slots == 0:
            return []
        out = [FREE] * min(count, self.slots - int(self.resident.sum()))
        candidates = np.flatnonzero(self.resident & ~pinned)
        order = np.argsort(self.values[candidates], kind="stable")[: count - len(out)]
        return out + candidates[order].tolist()

    def insert(self, expert: int, pinned: np.ndarray) -> bool:
        """Make a copied expert resident if it is worth more than the least of those that are not pinned, or
        if copies are kept whatever they are worth.
        """
        if self._pool is not None:
            return self._insert_into(self._pool, expert, pinned)
        victim = next(iter(self.victims(pinned, 1)), None)
        if victim is None or self.resident[expert]:
            return False
        values = self.values
        if victim != FREE and not self._keeps_copies and values[victim] >= values[expert]:
            return False
        self.replace(victim, expert)
        return True

    def _insert_into(self, pool: list[LayerCache], expert: int, pinned: np.ndarray) -> bool:
        """In place of the least valued expert of all layers; where all slots are pinned, of this one."""
        if self.resident[expert]:
            return False
        if sum(int(c.resident.sum()) for c in pool) < sum(c.slots for c in pool):
            self.resident[expert] = True
            return True
        evictable = [(c, c.resident & ~pinned if c is self else c.resident) for c in pool]
        if not any(mask.any() for _, mask in evictable):
            evictable = [(self, self.resident)]
        cache, victim = min(
            ((c, int(e)) for c, mask in evictable for e in np.flatnonzero(mask)),
            key=lambda place: place[0].values[place[1]],
        )
        cache.resident[victim] = False
        self.resident[expert] = True
        return True

    def replace(self, victim: int, expert: int) -> None:
        """Give the victim's slot to an expert."""
        if victim != FREE:
            self.resident[victim] = False
        self.resident[expert] = True


def next_uses(used: np.ndarray) -> np.ndarray:
    """From ``used [S, L, E]`` bool to int32 ``[S, L, E]``: the next step that uses an expert, S if none."""
    steps = used.shape[0]
    out = np.full(used.shape, steps, np.int32)
    for s in range(steps - 2, -1, -1):
        out[s] = np.where(used[s + 1], s + 1, out[s + 1])
    return out


def hit_rate(
    trace_loads: list[list[np.ndarray]],
    scores: list[list[np.ndarray]],
    policy: str,
    slots: int,
    top_k: int,
    measure_from: int,
    alpha: float = TUNED_ALPHA,
) -> float:
    """Hits among the active experts where every miss is fetched into the cache, as caching papers count them.

    ``trace_loads[s][l]`` are loads ``[E]`` and ``scores[s][l]`` are scores ``[tokens, E]`` of step s in layer
    l.
    """
    layers = len(trace_loads[0])
    used = np.array([[loads > 0 for loads in step] for step in trace_loads])
    future = next_uses(used) if policy == "belady" else None
    hits = total = 0
    nothing_pinned = np.zeros(used.shape[2], bool)
    for layer in range(layers):
        cache = LayerCache(
            policy,
            slots,
            top_k,
            used[:measure_from, layer].sum(0),
            None if future is None else future[:, layer],
            alpha,
        )
        for s, step in enumerate(trace_loads):
            active = used[s, layer]
            if s >= measure_from:
                hits += int((cache.resident & active).sum())
                total += int(active.sum())
            cache.observe(s, step[layer], scores[s][layer])
            for expert in np.flatnonzero(active & ~cache.resident):
                cache.insert(int(expert), nothing_pinned)  # the layer is over
    return hits / total if total else 0.0


def shared_hit_rate(
    trace_loads: list[list[np.ndarray]],
    scores: list[list[np.ndarray]],
    policy: str,
    slots: int,
    top_k: int,
    alpha: float = TUNED_ALPHA,
) -> float:
    """As `hit_rate`, but layers take slots from each other: the least valuable expert of all leaves."""
    shape = len(trace_loads[0]), len(trace_loads[0][0])
    layers = [CacheValues(policy, shape[1], top_k, alpha) for _ in range(shape[0])]
    values = np.zeros(shape)
    resident = np.zeros(shape, bool)
    resident[:, :slots] = True
    hits = total = 0
    for step, step_scores in zip(trace_loads, scores, strict=True):
        for layer, loads in enumerate(step):
            active = loads > 0
            hits += int((resident[layer] & active).sum())
            total += int(active.sum())
            layers[layer].observe(loads, step_scores[layer])
            values[layer] = layers[layer].values
            for expert in np.flatnonzero(active & ~resident[layer]):
                victim = np.unravel_index(np.where(resident, values, np.inf).argmin(), shape)
                if values[victim] < values[layer, expert]:
                    resident[victim] = False
                    resident[layer, expert] = True
    return hits / total if total else 0.0
