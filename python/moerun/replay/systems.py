"""The systems that the replay compares: a scheduler, a cache, a prefetcher, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moerun.policy import COPY_PRICE, TUNED_ALPHA


@dataclass(frozen=True)
class System:
    """What one system does.

    Attributes
    ----------
    schedule
        A method of ``moerun.policy.split``.
    cache
        One of ``cache.REPLAY_CACHES``; "layers" caches whole layers (llama.cpp).
    alpha
        Of the cache policies "mrs" and "recent". HybriMoE's paper names none; see ``TUNED_ALPHA``.
    prefetch
        "none"; "confidence" (the most confident first); "impact" (HybriMoE: by re-planning); "guarded" (ours:
        also weighs the eviction's harm and the wait it may cause); "perfect" (impact, but knows the routing).
    predictor
        Whose guess the prefetch goes by: "gates", "corrected" (gates on the corrected state) or "history".
    promote
        Copy experts that the CPU had to run into the cache while PCIe has nothing else to do.
    allow_fraction, partial_copy
        Whether one expert may be divided between CPU and GPU, and then only the GPU's part of it be copied.
    keeps_copies
        The cache begins empty, and every expert that is copied takes the place of the least valued one, as in
        the engine. Else it begins with the experts used most in the warm-up, and a copied one must be worth
        more than the one that it replaces.
    one_budget
        With ``keeps_copies``: layers take slots from each other, as in the engine.
    copy_price
        What a microsecond of PCIe is worth elsewhere to the scheduler "balanced".
    share_step
        "balanced" divides an expert at multiples of this share; 0: at any.
    attention_on_cpu
        Layers that are not cached run as a whole on the CPU (llama.cpp with -ngl).
    """

    name: str
    schedule: str
    cache: str
    alpha: float = TUNED_ALPHA
    prefetch: str = "none"
    predictor: str = "gates"
    promote: bool = False
    allow_fraction: bool = False
    partial_copy: bool = False
    keeps_copies: bool = False
    one_budget: bool = False
    copy_price: float = 0.0
    share_step: float = 0.0
    attention_on_cpu: bool = False

    def but(self, name: str, **changes: object) -> System:
        """The same system with some fields changed."""
        return replace(self, name=name, **changes)  # type: ignore[arg-type]


KTRANSFORMERS = System("kTransformers", "static", "static")
HYBRIMOE = System("HybriMoE", "hybrimoe", "mrs", prefetch="impact")
OURS = System(
    "ours",
    "balanced",
    "mrs",
    prefetch="guarded",
    promote=True,
    allow_fraction=True,
    partial_copy=True,
    copy_price=COPY_PRICE,
)
# The bounds have every freedom that ours has, and know the future besides.
BELADY = System("Belady + exact", "exact", "belady", promote=True, allow_fraction=True, partial_copy=True)
PERFECT = BELADY.but("perfect prefetch", prefetch="perfect")

SYSTEMS = {
    system.name: system
    for system in (
        System("llama.cpp -ngl", "layerwise", "layers", attention_on_cpu=True),
        System("llama.cpp --n-cpu-moe", "layerwise", "layers"),
        System("AdapMoE", "ondemand", "lru", prefetch="confidence"),
        KTRANSFORMERS,
        HYBRIMOE,
        OURS,
        BELADY,
        PERFECT,
    )
}


def find_system(name: str) -> System:
    """A system by name, ignoring case.

    Raises
    ------
    ValueError
        No such system; the message lists those there are.
    """
    for known, system in SYSTEMS.items():
        if known.lower() == name.lower():
            return system
    raise ValueError(f"system {name!r} is unknown; known: {', '.join(SYSTEMS)}")
