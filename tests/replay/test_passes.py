"""Big-little passes in the replay: what they use, and what they cost by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moerun.replay.models import MODELS, ModelShape
from moerun.replay.passes import big_little_passes, lossless_passes, usual_passes
from moerun.replay.profile import Profile, load_profile
from moerun.replay.simulator import Replay
from moerun.replay.synthetic import STYLES, generate
from moerun.replay.systems import HYBRIMOE, OURS, System
from moerun.replay.trace import DECODE, Trace

# Round figures: an expert (3 MB) takes 30 us on the GPU and 600 us to copy; a layer costs 100 us besides.
MODEL = ModelShape("round", 2, 4, 2, 1000, 1000, 0, 0)
MACHINE = Profile("round", 8, 10, 1e9, 0, 100, 1e9, 0, 5, 0, 100)
ON_DEMAND = System("s", "ondemand", "lru")
DEEPSEEK = replace(MODELS["DeepSeek-V2-Lite"], num_layers=5)


def trace_of(*ids: tuple[int, int]) -> Trace:
    """One token a step, the same experts in both layers."""
    chosen = np.repeat(np.array(ids, np.uint16)[:, None, :], 2, axis=1)
    scores = np.zeros((len(ids), 2, 4), np.float16)
    np.put_along_axis(scores, chosen.astype(int), np.array([0.6, 0.4], np.float16), axis=-1)
    return Trace("round", chosen, scores, np.arange(len(ids)), np.full(len(ids), DECODE))


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 6))
def test_every_step_has_a_pass_and_a_second_one_if_it_falls_back(sure: list[bool], little_k: int) -> None:
    trace = generate(DEEPSEEK, STYLES["DeepSeek-V2-Lite"], 7, 12, seed=0, warmup=3)
    passes = big_little_passes(trace, little_k, sure)
    prompt = [p for p in passes if len(p.tokens) == 7]
    assert [(p.top_k, p.known) for p in prompt] == [(6, 0)]
    decoded = [p for p in passes if len(p.tokens) == 1]
    littles = [p for p in decoded if not p.known]
    assert [int(p.tokens[0]) for p in littles] == [0, 1, 2, *range(10, 22)]
    assert all(p.top_k == little_k for p in littles)
    fallbacks = [int(p.tokens[0]) for p in decoded if p.known]
    assert fallbacks == [int(p.tokens[0]) for i, p in enumerate(littles) if not sure[i % len(sure)]]
    assert [p.step for p in passes] == sorted(p.step for p in passes)


def test_times_by_hand() -> None:
    # Nothing is cached (no slots): each layer takes 100 us, and 600 us a copy, the last expert then 30 us.
    trace = trace_of((0, 1), (2, 3))
    usual = Replay(trace, MODEL, MACHINE, ON_DEMAND, 0.0).run().decode
    assert usual.step_us == pytest.approx(2 * (100 + 1230))
    sure = Replay(trace, MODEL, MACHINE, ON_DEMAND, 0.0, 0, big_little_passes(trace, 1, [True])).run().decode
    assert sure.step_us == pytest.approx(2 * (100 + 630))
    assert (sure.steps, sure.tokens, sure.active) == (2, 2, 4)


def test_a_fallback_finds_what_its_little_pass_has_brought_and_knows_the_rest() -> None:
    trace = trace_of((0, 1))
    passes = big_little_passes(trace, 1, [False])
    decode = Replay(trace, MODEL, MACHINE, ON_DEMAND, 0.5, 0, passes).run().decode
    assert decode.steps == 1
    assert decode.active == 2 * (1 + 2)
    # Experts 0 and 1 are in the two slots from the start; a second token brings 2, and falls back to 2 and 3.
    trace = trace_of((0, 1), (2, 3))
    passes = big_little_passes(trace, 1, [True, False])
    decode = Replay(trace, MODEL, MACHINE, ON_DEMAND, 0.5, 0, passes).run().decode
    assert decode.active == 2 * 1 + 2 * (1 + 2)
    # Of the six: 0 is there at the first, 2 at the fallback; 3 may have been copied ahead.
    assert decode.hits >= 2 * (1 + 1)
    assert decode.demand_copies + decode.prefetched >= 2 * (1 + 1)


def test_all_experts_without_a_doubt_is_the_usual_replay() -> None:
    trace = generate(DEEPSEEK, STYLES["DeepSeek-V2-Lite"], 16, 10, seed=4, warmup=5)
    machine = load_profile("rtx4080-ddr4")
    for system in (ON_DEMAND, HYBRIMOE, OURS):
        usual = Replay(trace, DEEPSEEK, machine, system, 0.25, 5).run()
        same = Replay(trace, DEEPSEEK, machine, system, 0.25, 5, big_little_passes(trace, 6, [True])).run()
        again = Replay(trace, DEEPSEEK, machine, system, 0.25, 5, usual_passes(trace)).run()
        assert usual.decode.report() == same.decode.report() == again.decode.report()


@pytest.mark.parametrize("system", [ON_DEMAND, HYBRIMOE, OURS], ids=lambda s: s.name)
def test_more_fallbacks_take_longer(system: System) -> None:
    trace = generate(DEEPSEEK, STYLES["DeepSeek-V2-Lite"], 0, 30, seed=4, warmup=10)
    machine = load_profile("rtx4080-ddr4")

    def step_us(sure: list[bool]) -> float:
        passes = big_little_passes(trace, 3, sure)
        return Replay(trace, DEEPSEEK, machine, system, 0.25, 10, passes).run().decode.step_us

    assert step_us([True]) < step_us([True] * 4 + [False]) < step_us([False])
    assert step_us([True]) < Replay(trace, DEEPSEEK, machine, system, 0.25, 10).run().decode.step_us


ROUND = (
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
    .map(sorted)
    .map(lambda r: tuple(r[::-1]))
)


@given(st.lists(ROUND, min_size=1, max_size=6), st.integers(1, 6))
def test_every_decoded_token_is_generated_once_by_a_verification(
    rounds: list[tuple[int, int, int]], little_k: int
) -> None:
    trace = generate(DEEPSEEK, STYLES["DeepSeek-V2-Lite"], 7, 12, seed=0, warmup=3)
    passes = lossless_passes(trace, little_k, rounds)
    prompt = [p for p in passes if len(p.tokens) == 7]
    assert [(p.top_k, p.known, p.done) for p in prompt] == [(6, 0, None)]
    decoded = [p for p in passes if p.done is not None]
    drafts = [p for p in decoded if p.done == 0]
    assert all(p.top_k == little_k and len(p.tokens) == 1 for p in drafts)
    verifications = [p for p in decoded if p.done]
    generated = [int(t) for p in verifications for t in p.tokens[: p.done]]
    assert generated == [0, 1, 2, *range(10, 22)]
    assert all(p.top_k == 6 and p.known <= len(p.tokens) for p in verifications)
    assert [p.step for p in passes] == sorted(p.step for p in passes)


def test_the_passes_of_a_round() -> None:
    trace = trace_of((0, 1), (0, 2), (2, 3), (0, 1))
    passes = lossless_passes(trace, 1, [(2, 2, 1), (3, 1, 1)])
    assert [(p.tokens.tolist(), p.step, p.top_k, p.known, p.done) for p in passes] == [
        ([0], 0, 1, 0, 0),
        ([1], 0, 1, 0, 0),
        ([0, 1, 2], 0, 2, 2, 2),  # the second draft has not been through a little pass, and is wrong
        ([2], 2, 1, 0, 0),
        ([3], 2, 1, 0, 0),
        ([2, 3], 2, 2, 2, 2),
    ]


def test_a_verification_reads_what_its_tokens_share_once() -> None:
    # Nothing is cached: 100 us a layer and pass, 600 us a copy, the last expert then 30 us.
    trace = trace_of((0, 1), (0, 2))
    usual = Replay(trace, MODEL, MACHINE, ON_DEMAND, 0.0).run().decode
    together = lossless_passes(trace, 1, [(1, 1, 1)])
    found = Replay(trace, MODEL, MACHINE, ON_DEMAND, 0.0, 0, together).run().decode
    assert (found.steps, found.tokens) == (usual.steps, usual.tokens) == (2, 2)
    assert found.active == 2 * (1 + 3)  # the draft's expert, then 0, 1 and 2
    assert found.time_us == pytest.approx(2 * (100 + 630) + 2 * (100 + 3 * 600 + 30))


def test_lossless_without_drafts_is_the_usual_replay() -> None:
    trace = generate(DEEPSEEK, STYLES["DeepSeek-V2-Lite"], 16, 10, seed=4, warmup=5)
    machine = load_profile("rtx4080-ddr4")
    for system in (ON_DEMAND, HYBRIMOE, OURS):
        usual = Replay(trace, DEEPSEEK, machine, system, 0.25, 5).run()
        same = Replay(trace, DEEPSEEK, machine, system, 0.25, 5, lossless_passes(trace, 3, [(0, 0, 0)])).run()
        assert usual.decode.report() == same.decode.report()


def test_rounds_that_cannot_be() -> None:
    trace = trace_of((0, 1))
    for rounds, message in (
        ([], "rounds is empty"),
        ([(1, 2, 0)], "1 little passes cannot draft 2"),
        ([(2, 1, 2)], "2 are right"),
        ([(1, 1, -1)], "-1 are right"),
    ):
        with pytest.raises(ValueError, match=message):
            lossless_passes(trace, 1, rounds)
    with pytest.raises(ValueError, match="little_k is 3"):
        lossless_passes(trace, 3, [(0, 0, 0)])
    batch = replace(trace_of((0, 1), (2, 3)), step=np.array([0, 0]))
    with pytest.raises(ValueError, match="step 0 decodes 2 tokens"):
        lossless_passes(batch, 1, [(0, 0, 0)])


def test_what_does_not_fit() -> None:
    trace = trace_of((0, 1))
    for little_k in (0, 3):
        with pytest.raises(ValueError, match=f"little_k is {little_k}"):
            big_little_passes(trace, little_k, [True])
    with pytest.raises(ValueError, match="sure is empty"):
        big_little_passes(trace, 1, [])
