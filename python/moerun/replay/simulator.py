"""A routing trace played against a hardware profile on a virtual clock. Deterministic, single-threaded.

The planner, the cache values and the prefetch choice are the engine's own (moerun.policy); this file supplies
what the devices would do: per layer, attention on the GPU, then the plan; prefetches move over PCIe whenever
no demand copy does, and a demand copy waits for at most one chunk of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from moerun.policy import MAX_DISTANCE, Plan, PrefetchConfidence, Splitter, prefetch
from moerun.replay.cache import FREE, LayerCache, next_uses
from moerun.replay.counters import Counters
from moerun.replay.models import ModelShape
from moerun.replay.passes import Pass, usual_passes
from moerun.replay.pcie import Pcie, Transfer
from moerun.replay.profile import Profile
from moerun.replay.systems import System
from moerun.replay.trace import PREFILL, Trace

CHUNK_BYTES = 1 << 18  # what a demand copy may have to wait for
VICTIMS = 4  # slots a layer offers to prefetches
# Beyond this many tokens nearly every expert is active, and rank says little about one expert: confidences
# are learned from smaller steps only (heuristic).
LEARN_TOKENS = 4


class Replay:
    """One trace, one machine, one system, one size of cache.

    Parameters
    ----------
    cache_ratio
        Share of each layer's experts that has a slot, 0..1.
    measure_from
        Steps with a smaller number warm caches and learned confidences up and are not counted; how often they
        use each expert decides the initial placement.
    passes
        How the steps of the trace go through the layers; None: each in one pass, with all experts.
    """

    def __init__(
        self,
        trace: Trace,
        model: ModelShape,
        profile: Profile,
        system: System,
        cache_ratio: float,
        measure_from: int = 0,
        passes: Sequence[Pass] | None = None,
    ) -> None:
        if (trace.num_experts, trace.top_k) != (model.num_experts, model.top_k):
            raise ValueError(
                f"the trace has {trace.num_experts} experts, top-{trace.top_k}, but {model.name} has "
                f"{model.num_experts}, top-{model.top_k}; replay it with the model it was recorded from"
            )
        if not 0 <= cache_ratio <= 1:
            raise ValueError(f"cache_ratio is {cache_ratio}; it is a share of the experts, 0 to 1")
        self.trace, self.model, self.profile, self.system = trace, model, profile, system
        self.cost = profile.cost(model)
        self.chunk_us = min(self.cost.copy_us, CHUNK_BYTES / profile.pcie_gbps / 1e3)
        self.prefill, self.decode = Counters(), Counters()
        self.passes = usual_passes(trace) if passes is None else passes
        self.measure_from = measure_from
        self.loads = [
            [trace.loads(p.tokens, layer, p.top_k) for layer in range(trace.num_layers)] for p in self.passes
        ]
        self.caches = self._caches(round(cache_ratio * model.num_experts), cache_ratio)
        # Ours knows when the next gate is due, for attention takes what it took the layer before.
        self.pcie = Pcie(self.chunk_us if system.prefetch in ("guarded", "perfect") else 0.0)
        self.pass_us: list[float] = []  # what each pass took
        self.demand_us = 0.0  # running average of what the demand copies of a layer take
        self.splitter = Splitter()
        self.confidence = PrefetchConfidence(trace.num_experts)
        self.usage = np.full((trace.num_layers, trace.num_experts), trace.top_k / trace.num_experts)
        # Of this step, per layer: what was prefetched and is there, and the time spent on what was put off.
        self.arrived: dict[int, set[int]] = {}
        self.begun_us: dict[tuple[int, int], float] = {}

    def _caches(self, slots: int, cache_ratio: float) -> list[LayerCache]:
        trace, system = self.trace, self.system
        used = np.array([[loads > 0 for loads in step] for step in self.loads])
        usage = used[[p.step < self.measure_from for p in self.passes]].sum(0)
        future = next_uses(used) if system.cache == "belady" else None
        if system.cache == "layers":
            whole = round(cache_ratio * trace.num_layers)
            sizes = [trace.num_experts if layer < whole else 0 for layer in range(trace.num_layers)]
            return [LayerCache("static", n, trace.top_k, usage[layer]) for layer, n in enumerate(sizes)]
        pool: list[LayerCache] | None = [] if system.one_budget else None
        return [
            LayerCache(
                system.cache, slots, trace.top_k, usage[layer],
                None if future is None else future[:, layer], system.alpha, system.keeps_copies, pool,
            )
            for layer in range(trace.num_layers)
        ]  # fmt: skip

    def run(self) -> Replay:
        """Play all steps; the results are in ``prefill`` and ``decode``."""
        for number, current in enumerate(self.passes):
            phase = self.prefill if self.trace.phase[current.tokens[0]] == PREFILL else self.decode
            counters = phase if current.step >= self.measure_from else Counters()
            self._pass(number, current, counters)
        return self

    def _pass(self, number: int, current: Pass, counters: Counters) -> None:
        begin_us = now_us = self.pcie.now_us
        busy_before = self.pcie.busy_us
        self.arrived, self.begun_us = {}, {}
        if current.known:
            shared_us = self.profile.shared_gpu_us(self.model, len(current.tokens))
            self._prefetch(current, -1, now_us, now_us, shared_us)
        for layer in range(self.trace.num_layers):
            now_us = self._layer(number, layer, current, now_us, counters)
        counters.steps += 1 if current.done is None else current.done
        counters.tokens += len(current.tokens) if current.done is None else current.done
        counters.time_us += now_us - begin_us
        self.pass_us.append(now_us - begin_us)
        self._land(self.pcie.run_until(now_us), counters)
        counters.pcie_busy_us += self.pcie.busy_us - busy_before

    def _layer(self, number: int, layer: int, current: Pass, now_us: float, counters: Counters) -> float:
        """Attention and experts of one layer from ``now_us``; returns when it ends."""
        tokens = current.tokens
        system, cache, loads = self.system, self.caches[layer], self.loads[number][layer]
        active = loads > 0
        off_gpu = system.attention_on_cpu and not cache.resident.all()
        shared_us = 0.0 if off_gpu else self.profile.shared_gpu_us(self.model, len(tokens))
        attention_us = (
            self.profile.cpu_layer_us(self.model, len(tokens))
            if off_gpu
            else self.profile.attention_us(self.model, len(tokens))
        )
        gate_us = now_us + attention_us
        self._land(self.pcie.run_until(gate_us), counters)
        self._learn(number, layer, current)

        scores = self.trace.scores[tokens, layer].astype(np.float32)
        cache.observe(number, loads, scores)
        counters.active += int(active.sum())
        counters.hits += int((active & cache.resident).sum())
        counters.prefetch_used += len(
            [e for e in self.arrived.get(layer, ()) if active[e] and cache.resident[e]]
        )

        prefill = bool(self.trace.phase[tokens[0]] == PREFILL)
        plan = self.splitter.split(
            loads,
            cache.resident,
            self.cost,
            system.schedule,
            shared_us,
            allow_fraction=system.allow_fraction,
            partial_copy=system.partial_copy,
            prefill=prefill,
            copy_price=system.copy_price,
            share_step=system.share_step,
        )
        demanded = dict(zip(plan.copy.tolist(), plan.copy_fraction.tolist(), strict=True))
        wait_us = self.pcie.finish_chunk(self.cost.copy_us, self.chunk_us) if demanded else 0.0
        self._land(self.pcie.run_until(gate_us + wait_us), counters)
        ahead_us = self._copied_ahead(layer, demanded)
        copy_us = {
            e: max(part * self.cost.copy_us - ahead_us.get(e, 0.0), 0.0) for e, part in demanded.items()
        }
        makespan_us = self._execute(plan, shared_us, wait_us, copy_us)

        copying_us = sum(copy_us.values())
        self.pcie.now_us = max(self.pcie.now_us, gate_us + wait_us + copying_us)
        self.pcie.busy_us += copying_us
        self.demand_us += 0.1 * (copying_us - self.demand_us)
        for expert, part in demanded.items():
            if part == 1:
                cache.insert(expert, active)
        counters.demand_copies += len(demanded)
        counters.makespan_us += makespan_us
        counters.planned_us += plan.makespan_us
        counters.cpu_busy_us += sum(end - begin for _, begin, end in plan.cpu_intervals)
        counters.gpu_busy_us += sum(end - begin for _, begin, end in plan.gpu_intervals) + shared_us
        if off_gpu:
            counters.cpu_busy_us += attention_us
        else:
            counters.gpu_busy_us += attention_us

        if system.promote:
            missing_us = {e: self.cost.copy_us for e in plan.cpu.tolist() if not cache.resident[e]}
            missing_us |= {e: (1 - part) * self.cost.copy_us for e, part in demanded.items() if part < 1}
            self._promote(layer, missing_us, active)
        if system.prefetch != "none" or current.known:
            self._prefetch(current, layer, gate_us, gate_us + makespan_us, shared_us)
        return gate_us + makespan_us

    # What the devices do.

    def _execute(self, plan: Plan, shared_us: float, wait_us: float, copy_us: dict[int, float]) -> float:
        """The plan's makespan when copies start ``wait_us`` late and take ``copy_us``."""
        ready = {}
        pcie_us = wait_us
        for expert in plan.copy.tolist():
            pcie_us += copy_us[expert]
            ready[expert] = pcie_us
        gpu_us = shared_us
        for expert, begin_us, end_us in plan.gpu_intervals:
            gpu_us = max(gpu_us, ready.get(expert, 0.0)) + end_us - begin_us
        return max([gpu_us, *(end for *_, end in plan.cpu_intervals)])

    def _copied_ahead(self, layer: int, demanded: dict[int, float]) -> dict[int, float]:
        """Demanded experts that are partly copied: the time spent. Prefetches for the layer end here."""
        done_us = {}
        for queue in (self.pcie.prefetches, self.pcie.promotions):
            for transfer in [t for t in queue if t.layer == layer]:
                if transfer.expert in demanded:
                    done_us[transfer.expert] = self.cost.copy_us - transfer.left_us
                elif transfer.promotion:
                    continue
                queue.remove(transfer)
        return {expert: us for expert, us in done_us.items() if us > 0}

    def _land(self, transfers: Iterator[Transfer], counters: Counters) -> None:
        for transfer in transfers:
            cache = self.caches[transfer.layer]
            if transfer.promotion:
                counters.promoted += cache.insert(transfer.expert, np.zeros(len(cache.resident), bool))
                continue
            counters.prefetched += 1
            if transfer.victim != FREE and not cache.resident[transfer.victim]:
                continue  # the slot has changed hands meanwhile
            if transfer.victim == FREE and cache.resident.sum() >= cache.slots:
                continue
            cache.replace(transfer.victim, transfer.expert)
            self.arrived.setdefault(transfer.layer, set()).add(transfer.expert)

    # What the policies are told.

    def _promote(self, layer: int, missing_us: dict[int, float], active: np.ndarray) -> None:
        """Queue the most valuable of the experts that the CPU ran, if worth more than the least resident one.

        ``missing_us`` is what copying the rest of each takes.
        """
        cache = self.caches[layer]
        waiting = self.pcie.pending(layer)
        values = cache.values
        missed = [e for e in missing_us if e not in waiting]
        victim = next(iter(cache.victims(active, 1)), None)
        if not missed or victim is None:
            return
        best = max(missed, key=lambda e: (values[e], -e))
        if victim == FREE or values[best] > values[victim]:
            self.pcie.promotions = [t for t in self.pcie.promotions if t.layer != layer]
            self.pcie.promotions.append(Transfer(layer, best, victim, missing_us[best], True))

    def _knows(self, current: Pass) -> bool:
        """Whether the routing of the next layers is known (of some tokens at least), not predicted."""
        return current.known > 0 or self.system.prefetch == "perfect"

    def _predicted(self, layer: int, distance: int, current: Pass) -> np.ndarray | None:
        """Scores ``[tokens, E]`` expected ``distance`` layers after ``layer``, of the tokens whose routing is
        known if that of any is; None without a prediction."""
        target, tokens = layer + distance, current.tokens
        if target >= self.trace.num_layers:
            return None
        system = self.system
        if self._knows(current):
            return self.trace.scores[tokens[: current.known or None], target].astype(np.float32)
        if system.predictor == "history":
            return np.broadcast_to(self.usage[target], (len(tokens), self.trace.num_experts))
        source = self.trace.corrected if system.predictor == "corrected" else self.trace.predicted
        if source is None or distance > source.shape[2]:
            return None
        return source[tokens, layer, distance - 1].astype(np.float32)

    def _learn(self, number: int, layer: int, current: Pass) -> None:
        """Compare what was predicted for this layer with what its router chose."""
        loads, tokens = self.loads[number][layer], current.tokens
        counters = self.prefill if self.trace.phase[tokens[0]] == PREFILL else self.decode
        predicts = self.system.prefetch != "none" and not self._knows(current)
        if predicts and len(tokens) <= LEARN_TOKENS:
            for distance in range(1, min(MAX_DISTANCE, layer) + 1):
                scores = self._predicted(layer - distance, distance, current)
                if scores is None:
                    continue
                for row, chosen in zip(scores, self.trace.ids[tokens, layer, : current.top_k], strict=True):
                    used = set(chosen.tolist())
                    for rank, expert in enumerate(np.argsort(-row, kind="stable").tolist()):
                        self.confidence.observe(distance, rank, expert in used)
                        if rank < current.top_k and current.step >= self.measure_from:
                            counters.predictions[distance - 1] += 1
                            counters.correct[distance - 1] += expert in used
        self.usage[layer] += 0.1 * ((loads > 0) - self.usage[layer])

    def _prefetch(self, current: Pass, layer: int, gate_us: float, end_us: float, shared_us: float) -> None:
        """Re-plan what PCIe copies ahead: predictions of this layer replace those of the one before."""
        system, tokens = self.system, current.tokens
        guarded = system.prefetch in ("guarded", "perfect")
        for transfer in self.pcie.prefetches:
            self.begun_us[transfer.layer, transfer.expert] = self.cost.copy_us - transfer.left_us
        self.pcie.prefetches = []
        attention_us = self.profile.attention_us(self.model, len(tokens))
        forecasts = []
        for distance in range(1, MAX_DISTANCE + 1):
            scores = self._predicted(layer, distance, current)
            if scores is None:
                break
            start_us = end_us + attention_us + (distance - 1) * (attention_us + end_us - gate_us)
            if guarded:  # demand copies of the layers between come first
                start_us -= (distance - 1) * self.demand_us
            forecasts.append(self._forecast(current, layer, distance, scores, start_us - gate_us))
        chosen = prefetch(
            forecasts,
            self.cost,
            shared_us,
            "balanced" if system.schedule in ("exact", "balanced") else system.schedule,
            pcie_free_us=self.pcie.now_us - gate_us,
            chunk_us=0.0,
            impact=system.prefetch != "confidence",
        )
        for distance, expert, victim, _ in chosen:
            left_us = self.cost.copy_us - self.begun_us.get((layer + distance, expert), 0.0)
            self.pcie.prefetches.append(Transfer(layer + distance, expert, victim, left_us, False))

    def _forecast(
        self, current: Pass, layer: int, distance: int, scores: np.ndarray, start_us: float
    ) -> tuple:
        """A layer ahead as ``moerun.policy.prefetch`` takes it."""
        trace, system = self.trace, self.system
        cache = self.caches[layer + distance]
        order = np.argsort(-scores, axis=1, kind="stable")
        likely = order[:, : current.top_k]
        loads = np.bincount(likely.ravel(), minlength=trace.num_experts).astype(np.int32)
        if self._knows(current):
            chance = (loads > 0).astype(float)
        else:
            by_rank = np.array([self.confidence.value(distance, r) for r in range(trace.num_experts)])
            ranks = np.argsort(order, axis=1)
            chance = 1 - np.prod(1 - by_rank[ranks], axis=0)  # that any of the tokens uses it
        victims = cache.victims(loads > 0, VICTIMS)
        weigh = system.prefetch == "guarded" or self._knows(current)
        victim_chance = [float(chance[v]) if weigh and v != FREE else 0.0 for v in victims]
        left = np.ones(trace.num_experts)
        for (target, expert), begun_us in self.begun_us.items():
            if target == layer + distance:
                left[expert] = max(1 - begun_us / self.cost.copy_us, 1e-9)
        return distance, start_us, loads, chance, cache.resident, left, victims, victim_chance
