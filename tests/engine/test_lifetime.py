"""Who keeps what alive: layers, engines, tensors, handles and jobs may go in any order."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import torch

import expert_layers
import moerun
from child_process import check_python


def test_a_layer_keeps_its_engine(small) -> None:
    engine = moerun.Engine(cpu_threads=1)
    layer = engine.add_layer(small.layer.spec, expert_layers.tensors_of(small.experts))
    del engine
    gc.collect()
    assert torch.equal(layer.forward(*small.batch), small.output)
    assert torch.equal(layer.submit(*small.batch).wait(), small.output)


def test_a_layer_keeps_its_tensors(small) -> None:
    engine = moerun.Engine(cpu_threads=1)
    tensors = {name: t.numpy().copy() for name, t in expert_layers.tensors_of(small.experts).items()}
    watched = [weakref.ref(t) for t in tensors.values()]
    layer = engine.add_layer(small.layer.spec, tensors)
    tensors.clear()
    gc.collect()
    garbage = [np.full((5, 24, 24), np.nan, np.float32) for _ in range(50)]
    assert torch.equal(layer.forward(*small.batch), small.output)
    assert all(ref() is not None for ref in watched)
    del layer, engine, garbage
    gc.collect()
    assert all(ref() is None for ref in watched), "the weights outlived the engine"


def test_closing_keeps_the_tensors_of_pending_work(small) -> None:
    engine = moerun.Engine(cpu_threads=1)
    layer = engine.add_layer(small.layer.spec, expert_layers.tensors_of(small.experts))
    handles = [layer.submit(*small.batch) for _ in range(50)]
    del engine, layer
    gc.collect()
    assert all(torch.equal(handle.wait(), small.output) for handle in handles)


def test_arrays_of_a_forgotten_handle_live_until_the_work_is_done() -> None:
    """The first batch keeps the engine busy, so the second is still to come when its handle and arrays are
    dropped."""
    size, tokens = 512, 1024
    weights = np.zeros((1, 2 * size, size), np.float32)
    engine = moerun.Engine(cpu_threads=1, isa="ref")
    layer = engine.add_layer(
        moerun.LayerSpec(1, size, size, top_k=1), {"gate_up": weights, "down": weights[:, :size]}
    )

    def batch(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.zeros((n, size), np.float32), np.zeros((n, 1), np.int64), np.zeros((n, 1), np.float32)

    busy = layer.submit(*batch(tokens))
    arrays = batch(1)
    watched = [weakref.ref(a) for a in arrays]
    layer.submit(*arrays)
    del arrays
    alive = [ref() is not None for ref in watched]
    assert not busy.done(), "the first batch was too short for this test"
    assert all(alive)
    busy.wait()
    engine.close()
    del busy, layer, engine
    gc.collect()
    assert all(ref() is None for ref in watched), "the arrays outlived the engine"


def test_done_work_does_not_pile_up(small) -> None:
    """Arrays of forgotten handles go when later work is submitted, not only with the engine."""
    watched = []
    for _ in range(20):
        x = small.batch.x.numpy().copy()
        watched.append(weakref.ref(x))
        small.layer.submit(x, small.batch.ids.numpy(), small.batch.weights.numpy()).wait()
        del x
    small.layer.submit(*small.batch).wait()
    assert sum(ref() is not None for ref in watched) == 0


def test_results_outlive_everything(small) -> None:
    engine = moerun.Engine(cpu_threads=1)
    layer = engine.add_layer(small.layer.spec, expert_layers.tensors_of(small.experts))
    handle = layer.submit(*small.batch)
    result = handle.wait()
    del handle, layer, engine
    gc.collect()
    assert torch.equal(result, small.output)


END_WITH_PENDING_WORK = """
    import sys
    import numpy as np
    import moerun

    size, tokens = 256, 64
    weights = np.zeros((1, 2 * size, size), np.float32)
    engine = moerun.Engine(cpu_threads={threads}, isa="ref")
    spec = moerun.LayerSpec(1, size, size, top_k=1)
    layer = engine.add_layer(spec, {{"gate_up": weights, "down": weights[:, :size]}})
    def submit():
        return layer.submit(np.zeros((tokens, size), np.float32), np.zeros((tokens, 1), np.int64),
                            np.zeros((tokens, 1), np.float32))
    handles = [submit() for _ in range(10)]
    {ending}
    """


def test_the_interpreter_may_end_with_pending_work() -> None:
    for threads in (1, 2):
        for ending in ("", "del handles", "sys.exit(0)", "sys.modules['kept'] = (engine, handles)"):
            check_python(END_WITH_PENDING_WORK.format(threads=threads, ending=ending))
