"""Engine, Layer and Handle: the thin Python face of the C++ engine.

An engine owns the CPU threads and the layers; a layer is called with a batch and its routing. Routers stay
outside (reference ones are in moerun.routing).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from moerun import _core, tensors
from moerun.batch import Call
from moerun.expert_tensors import check_memory, memory_of
from moerun.layer_spec import DTYPES, ExpertBlobs, ExpertMemory, LayerSpec
from moerun.linear import Linear

if TYPE_CHECKING:
    from moerun.checkpoint import Checkpoint


# More than any machine has cores; OpenMP runtimes end the process when they cannot start a thread.
MOST_THREADS = 1024


@dataclass(frozen=True)
class EngineConfig:
    """How an engine runs.

    Parameters
    ----------
    device
        "cpu", or "auto" for the best that this machine and this version can use.
    cpu_threads
        Threads that compute, the calling one included; None means all cores that this process may use.
    isa
        Row of the kernel table: "avx512_bf16", "avx512", "avx2" or "ref"; None means the environment variable
        MOERUN_ISA, or the best that this machine has.

    Raises
    ------
    ValueError
        An unknown device or row of the kernel table, or threads outside of 1 .. MOST_THREADS.
    """

    device: str = "auto"
    cpu_threads: int | None = None
    isa: str | None = None

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu"):
            raise ValueError(f"device {self.device!r} is not available in this version; use 'auto' or 'cpu'")
        threads = self.cpu_threads
        if threads is not None and (
            isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or threads < 1
        ):
            raise ValueError(f"cpu_threads must be a positive integer or None, got {threads!r}")
        if threads is not None and threads > MOST_THREADS:
            raise ValueError(f"cpu_threads is {threads}, but an engine has at most {MOST_THREADS}")
        if self.isa is not None and not isinstance(self.isa, str):
            raise ValueError(f"isa must be a string or None, got {self.isa!r}")


class Engine:
    """Runs layers of experts. Thread-safe: one batch computes at a time, others wait their turn.

    Parameters
    ----------
    config
        An EngineConfig; or give its fields as keywords: ``Engine(cpu_threads=4)``.

    Raises
    ------
    ValueError
        An option that this machine cannot serve, saying what it has.

    Examples
    --------
    >>> with moerun.Engine(cpu_threads=2) as engine:
    ...     layer = engine.add_layer(moerun.LayerSpec(8, 64, 32, top_k=2), {"gate_up": gate_up, "down": down})
    ...     y = layer.forward(x, topk_ids, topk_weights)
    """

    def __init__(self, config: EngineConfig | None = None, **options: Any) -> None:
        if config is None:
            config = EngineConfig()
        elif not isinstance(config, EngineConfig):
            raise TypeError(f"config must be an EngineConfig, got {type(config).__name__}")
        unknown = options.keys() - {f.name for f in dataclasses.fields(EngineConfig)}
        if unknown:
            known = ", ".join(f.name for f in dataclasses.fields(EngineConfig))
            raise TypeError(f"Engine has no option {', '.join(sorted(unknown))}; it has {known}")
        self.config = dataclasses.replace(config, **options)
        self._core = _core.Engine(cpu_threads=self.config.cpu_threads or 0, isa=self.config.isa or "")
        self._layers: list[Layer] = []

    def add_layer(self, spec: LayerSpec, tensors: dict[str, Any] | ExpertMemory | ExpertBlobs) -> Layer:
        """Adds a layer of experts and returns it. Its memory is used where it lies and kept alive.

        With ``spec.quant``, weights in another format are quantised first, on the engine's number of threads,
        and the given memory is not needed any more.

        Parameters
        ----------
        spec
            Shape and arithmetic.
        tensors
            ``{"gate_up": [E, 2I, H], "down": [E, H, I]}`` in float32, float16 or bfloat16 (torch, numpy or
            DLPack), gate rows first, and with ``spec.bias`` also ``"gate_up_bias" [E, 2I]`` and
            ``"down_bias" [E, H]``; or ExpertMemory or ExpertBlobs, as Checkpoint.experts gives. Transposed
            views are used as they are; other strides and tensors on a device are copied once.

        Raises
        ------
        ValueError, TypeError
            A tensor that is missing, not expected, or of another shape or type than the spec says; a weight
            that ``spec.quant`` cannot hold.
        """
        if not isinstance(spec, LayerSpec):
            raise TypeError(f"spec must be a LayerSpec, got {type(spec).__name__}")
        if not isinstance(tensors, (Mapping, ExpertMemory, ExpertBlobs)):
            raise TypeError(
                f"tensors must be a dict, an ExpertMemory or ExpertBlobs, got {type(tensors).__name__}"
            )
        memory = memory_of(spec, tensors) if isinstance(tensors, Mapping) else tensors
        check_memory(spec, memory)
        if isinstance(memory, ExpertMemory) and spec.quant not in (None, memory.dtype):
            from moerun.quant import quantise_layer

            memory = quantise_layer(spec, memory, spec.quant, self.config.cpu_threads, self.config.isa)
        layer = Layer(self, spec, self._add(spec, memory))
        self._layers.append(layer)
        return layer

    def add_layer_from(
        self,
        checkpoint: Checkpoint,
        layer_index: int,
        quant: str | None = None,
        on_progress: Callable[[int], object] | None = None,
    ) -> Layer:
        """Adds the experts of one layer of a checkpoint, read where the file is mapped.

        Parameters
        ----------
        checkpoint, layer_index
            ``layer_index`` counts the model's layers from 0, dense ones included.
        quant
            Number format to quantise the experts to, one of WEIGHT_FORMATS; None keeps that of the
            checkpoint. The result is kept on disk ($MOERUN_CACHE), so that it is there at once the next time.
        on_progress
            Called with the number of experts that have become ready since the last call, where there is
            something to quantise.

        Raises
        ------
        ValueError
            The layer has no experts (the message names those that have some), the format is unknown, cannot
            hold a weight, or the checkpoint is already quantised in another one.
        """
        spec = dataclasses.replace(checkpoint.spec(layer_index), quant=quant)
        if quant in (None, checkpoint.expert_dtype):
            return self.add_layer(spec, checkpoint.experts(layer_index))
        if checkpoint.expert_dtype not in DTYPES:
            raise ValueError(
                f"the experts of {checkpoint.path} are stored as {checkpoint.expert_dtype} and cannot become "
                f"{quant}: leave the format out, or use the repository that they were quantised from"
            )
        from moerun.quant import load_quantised

        threads, isa = self.config.cpu_threads, self.config.isa
        return self.add_layer(spec, load_quantised(checkpoint, layer_index, quant, threads, isa, on_progress))

    def add_linear(self, weight: Any, bias: Any = None) -> Linear:
        """A dense linear layer ``[outputs, inputs]`` that runs on this engine's threads, with its kernels.

        For the parts of a model around the experts. Raises ValueError if shapes or types do not fit.
        """
        return Linear(self, weight, bias)

    def _add(self, spec: LayerSpec, memory: ExpertMemory | ExpertBlobs) -> _core.Layer:
        common = {
            "hidden": spec.hidden_size,
            "inter": spec.intermediate_size,
            "top_k": spec.top_k,
            "activation": _core.ActivationSpec(
                getattr(_core.Activation, spec.activation), spec.swiglu_alpha, spec.swiglu_limit
            ),
            "owner": memory.owner,
        }
        if isinstance(memory, ExpertBlobs):
            return self._core.add_blobs(
                **common,
                format=getattr(_core.WeightFormat, memory.format),
                bias=memory.bias,
                blobs=memory.addresses,
            )
        return self._core.add_layer(
            **common,
            format=getattr(_core.WeightFormat, memory.dtype),
            gate=memory.gate,
            up=memory.up,
            down=memory.down,
            gate_up_strides=memory.gate_up_strides,
            down_strides=memory.down_strides,
            gate_bias=memory.gate_bias,
            up_bias=memory.up_bias,
            down_bias=memory.down_bias,
        )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in the order in which they were added."""
        return tuple(self._layers)

    def stats(self) -> dict[str, Any]:
        """What was done so far.

        ``cpu_threads``, ``isa``, ``workspace_bytes`` and, per layer in ``layers``: ``batches``, ``tokens``,
        ``seconds``, ``weight_bytes`` (of active experts, once per batch) and ``expert_tokens``, int64 [E].
        """
        return self._core.stats()

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Writes the latest events as a timeline in Chrome's trace format, one lane per thread.

        Open it in chrome://tracing or ui.perfetto.dev. Raises OSError if the file cannot be
        written.
        """
        self._core.write_trace(os.fspath(path))

    def close(self) -> None:
        """Finishes submitted work and ends the engine's threads. Later calls raise RuntimeError."""
        self._core.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return self  # threads and mapped memory exist once; copies of what holds an engine share it

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a moerun.Engine is a part of its process and cannot be pickled; make one where it is needed"
        )

    def __repr__(self) -> str:
        state = "closed" if self._core.closed else f"{len(self._layers)} layers"
        return f"<moerun.Engine {state}>"


class Layer:
    """One layer of experts in an engine. Made by Engine.add_layer."""

    def __init__(self, engine: Engine, spec: LayerSpec, core: _core.Layer) -> None:
        self.engine = engine
        self.spec = spec
        self._core = core

    def forward(self, x: Any, topk_ids: Any, topk_weights: Any, out: Any = None) -> Any:
        """The weighted sum of each token's experts.

        ``y[t] = sum over j of topk_weights[t, j] * expert[topk_ids[t, j]](x[t])``, accumulated in fp32.

        Parameters
        ----------
        x
            ``[tokens, H]`` float32, float16 or bfloat16; torch (any device), numpy or DLPack.
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
            The engine is closed or came through a fork.
        """
        call = Call(self.spec, x, topk_ids, topk_weights, out)
        self.engine._core.forward(self._core, call.batch)
        return call.finish()

    def submit(self, x: Any, topk_ids: Any, topk_weights: Any, stream: Any = None) -> Handle:
        """Starts ``forward`` on the engine's own thread; ``Handle.wait`` gives the result.

        Returns at once. The arrays must not change until the result is there. Batches run in the order of
        submission. ``stream`` orders the work after a CUDA stream and is ignored for arrays in host memory.
        """
        call = Call(self.spec, x, topk_ids, topk_weights, None)
        return Handle(call, self.engine._core.submit(self._core, call.batch, call))

    def hint(self, next_ids: Any, scores: Any = None) -> None:
        """Tells which experts the next batch will probably use, for prefetching.

        Experts that lie in host memory and run there need none: without a GPU this does nothing.
        """

    def pinned(self, ids: Any) -> AbstractContextManager[None]:
        """Keeps experts, any array of ids, from leaving the GPU's cache until the ``with`` block ends.

        Experts that run in host memory are always there: without a GPU this does nothing.
        """
        return nullcontext()

    def __repr__(self) -> str:
        return f"<moerun.Layer {self._core.index}: {self.spec}>"


class Handle:
    """Work that Layer.submit started."""

    def __init__(self, call: Call, job: _core.Job) -> None:
        self._call = call
        self._job = job

    def wait(self, out: Any = None) -> Any:
        """Waits for the result and returns it; what the work raised is raised here. Ctrl-C interrupts.

        ``out`` ``[tokens, H]`` receives a copy, if given.
        """
        self._job.wait()
        result = self._call.finish()
        if out is None:
            return result
        tensors.copy(result, tensors.as_output(out, tuple(result.shape)))
        return out

    def done(self) -> bool:
        """Whether the result is there."""
        return self._job.done()
