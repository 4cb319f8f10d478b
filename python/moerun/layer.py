"""Layer and Handle: one layer of experts in an engine, and work that was submitted to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from moerun import _core, policy, tensors
from moerun.batch import Call
from moerun.device_arrays import lies_on_gpu
from moerun.device_batch import DeviceCall
from moerun.layer_spec import LayerSpec

if TYPE_CHECKING:
    from moerun.engine import Engine


class Layer:
    """One layer of experts in an engine. Made by Engine.add_layer."""

    def __init__(
        self, engine: Engine, spec: LayerSpec, core: _core.Layer, weight_format: str, x_dtype: str
    ) -> None:
        self.engine = engine
        self.spec = spec
        self.weight_format = weight_format
        self.x_dtype = x_dtype  # of the activations that are expected; others are served too
        self._core = core

    def forward(self, x: Any, topk_ids: Any, topk_weights: Any, out: Any = None) -> Any:
        """The weighted sum of each token's experts.

        ``y[t] = sum over j of topk_weights[t, j] * expert[topk_ids[t, j]](x[t])``, accumulated in fp32.

        Parameters
        ----------
        x
            ``[tokens, H]`` float32, float16 or bfloat16; torch (any device), numpy, DLPack, or contiguous
            with __cuda_array_interface__ (then with ``out``). On the engine's GPU it is read where it lies,
            in the order of torch's current stream, and the result is ordered there: nothing waits for the
            device, or for the CPU's share, but the work that follows in the stream. An error that comes
            later fills the result with NaN, and is raised by the next call of forward, submit or
            Engine.synchronize.
        topk_ids
            ``[tokens, k]`` int32 or int64, any k >= 0. Ids below 0 or from E on are skipped (expert-parallel
            sentinels); an id that occurs twice counts twice.
        topk_weights
            ``[tokens, k]`` float32, float16 or bfloat16.
        out
            ``[tokens, H]`` to write into; otherwise a new array like x.

        Returns
        -------
        ``out``, or an array of x's kind, type and device. Gradients are not tracked.

        Raises
        ------
        ValueError, TypeError
            Shapes or types that do not fit, before any work starts.
        RuntimeError
            The engine is closed or came through a fork, or x's stream is being captured in a CUDA graph.
        """
        if self._on_engine_gpu(x):
            return self._start_on_gpu(x, topk_ids, topk_weights, out, None).wait()
        call = Call(self.spec, x, topk_ids, topk_weights, out)
        self._ensure_kernels(call)
        self.engine._core.forward(self._core, call.batch)
        return call.finish()

    def submit(self, x: Any, topk_ids: Any, topk_weights: Any, stream: Any = None, out: Any = None) -> Handle:
        """Starts ``forward`` on the engine's own thread; ``Handle.wait`` gives the result.

        Returns at once. The arrays must not change until the result is there. Batches run in the order of
        submission.

        Parameters
        ----------
        stream
            For arrays on the engine's GPU: the CUDA stream (torch.cuda.Stream, or its handle as an int) that
            the work comes behind, and that comes behind the work at once, or where it cannot
            (EngineConfig.stream_wait), when ``Handle.wait`` is called. None: torch's current one, or what x's
            __cuda_array_interface__ names.
        out
            As for forward.

        Raises
        ------
        ValueError
            A stream for an x that does not lie on the engine's GPU; and what forward raises.
        """
        if self._on_engine_gpu(x):
            return self._start_on_gpu(x, topk_ids, topk_weights, out, stream)
        if stream is not None:
            raise ValueError(
                "stream orders arrays on the engine's GPU, and x does not lie there; leave it out"
            )
        call = Call(self.spec, x, topk_ids, topk_weights, out)
        self._ensure_kernels(call)
        return Handle(self.engine, call, self.engine._core.submit(self._core, call.batch, call))

    def _on_engine_gpu(self, x: Any) -> bool:
        return self.engine.gpu is not None and lies_on_gpu(x)

    def _start_on_gpu(self, x: Any, topk_ids: Any, topk_weights: Any, out: Any, stream: Any) -> Handle:
        call = DeviceCall(self.spec, x, topk_ids, topk_weights, out, stream)
        self._ensure_kernels(call)
        return Handle(self.engine, call, self.engine._core.submit(self._core, call.batch, call, call.stream))

    def _ensure_kernels(self, call: Call | DeviceCall) -> None:
        kernels = self.engine._kernels
        if kernels is not None:
            kernels.ensure(self._core, self.spec, self.weight_format, call.compute_dtype)

    def hint(self, next_ids: Any, scores: Any = None, distance: int | None = None) -> None:
        """Tells which experts the layer's next batch will probably use, so that they can be copied to the GPU
        while the bus is idle (HybriMoE, arXiv 2504.05897, section IV-C). Returns at once.

        Does nothing without a GPU or with prefetch="none". A prediction may be wrong: it costs time, never
        results.

        Parameters
        ----------
        next_ids
            ``[tokens, k]`` int32 or int64, the most probable expert first; ids outside of 0 .. E-1 are
            skipped.
        scores
            Accepted and not used: how far each rank can be trusted is learned from what comes true, and on
            recorded traces neither the router's score nor its ratio to the favourite's told more than that
            (mean squared error 0.207 with rank and score, 0.205 with the rank alone).
        distance
            How many layers before this one the prediction was made: 1, 2 or 3. None: when the layer that ran
            last had run.

        Raises
        ------
        ValueError
            Shapes or types that do not fit.
        """
        if self.engine._kernels is None or self.engine.config.prefetch == "none":
            return
        ids = np.asarray(tensors.on_host(tensors.as_array(next_ids, "next_ids")))
        if ids.ndim != 2 or ids.dtype.kind != "i":
            raise ValueError(f"next_ids must be [tokens, k] integers, got {ids.dtype} {list(ids.shape)}")
        self.engine._core.hint(self._core, ids, distance or 0)

    @property
    def cost(self) -> policy.CostModel | None:
        """What the planner thinks that an expert of this layer costs; None in an engine without a GPU."""
        return None if self.engine.gpu is None else self.engine._core.cost(self._core)

    @contextmanager
    def pinned(self, ids: Any) -> Iterator[None]:
        """Keeps experts that are in the GPU's cache from leaving it until the ``with`` block ends.

        A batch that cannot do without their slots takes them all the same. Experts that run in host memory
        are always there: without a GPU this does nothing.

        Parameters
        ----------
        ids
            Any array of integers; those outside of 0 .. E-1 are skipped.
        """
        if self.engine.gpu is None:
            yield
            return
        core, known = self.engine._core, np.unique(np.asarray(tensors.on_host(tensors.as_array(ids, "ids"))))
        experts = known[(known >= 0) & (known < self.spec.num_experts)].tolist()
        core.keep(self._core, experts, True)
        try:
            yield
        finally:
            if not core.closed:
                core.keep(self._core, experts, False)

    def __repr__(self) -> str:
        return f"<moerun.Layer {self._core.index}: {self.spec}>"


class Handle:
    """Work that Layer.submit started."""

    def __init__(self, engine: Engine, call: Call | DeviceCall, job: _core.Job) -> None:
        self._engine = engine
        self._call = call
        self._job = job

    def wait(self, out: Any = None) -> Any:
        """Waits for the result and returns it; what the work raised is raised here. Ctrl-C interrupts.

        ``out`` ``[tokens, H]`` receives a copy, if given. For arrays on the GPU the stream waits, on the
        device, and this only makes sure that it does. An error that comes later is raised by the engine's
        next batch, or by ``synchronize``.
        """
        self._job.wait()
        if out is None:
            return self._call.finish()
        self._call.copy_result(out)
        return out

    def synchronize(self) -> Any:
        """As ``wait()``, and waits until the GPU is done with the batch too: no error comes after this."""
        self._job.wait_until_done()
        if not self._job.stream_waits:  # the job counts as done when all is enqueued
            self._engine._core.synchronize()
        return self.wait()

    def done(self) -> bool:
        """Whether the result is there; of arrays on the GPU, at least whether all work for it is enqueued."""
        return self._job.done()
