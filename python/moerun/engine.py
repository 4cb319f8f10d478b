"""Engine: the thin Python face of the C++ engine.

An engine owns the CPU threads and the layers; a layer is called with a batch and its routing. Routers stay
outside (reference ones are in moerun.routing).
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from moerun import _core
from moerun.dense import Linear
from moerun.engine_config import EngineConfig
from moerun.errors import GpuError, KernelError
from moerun.expert_tensors import check_memory, memory_of
from moerun.gpu_kernels import EngineKernels, check_available
from moerun.layer import Handle, Layer
from moerun.layer_spec import DTYPES, ExpertBlobs, ExpertMemory, LayerSpec
from moerun.memory_size import parse_memory_size
from moerun.usage_record import UsageRecords

if TYPE_CHECKING:
    from moerun.calibration import Calibrator
    from moerun.checkpoint import Checkpoint


_log = logging.getLogger("moerun")

__all__ = ["Engine", "Handle", "Layer"]


def _make_core(config: EngineConfig) -> _core.Engine:
    """The C++ engine; with device="auto", one without a GPU where there is none to use."""
    threads, isa = config.cpu_threads or 0, config.isa or ""
    if config.device == "cpu":
        return _core.Engine(threads, isa)
    size = parse_memory_size(config.gpu_cache, "gpu_cache")
    options = _core.GpuOptions(
        schedule=config.schedule,
        cache=config.cache,
        prefetch=config.prefetch != "none",
        time_every=config.time_every,
        history=config.predictor == "history",
        stream_waits=config.stream_wait == "auto",
        pin=config.store != "staged",
        cache_bytes=size if isinstance(size, int) else None,
        cache_fraction=size if isinstance(size, float) else None,
    )
    try:
        core = _core.Engine(threads, isa, options)
        check_available(core.gpu_architecture)
        return core
    except (GpuError, KernelError) as error:
        if config.device == "cuda":
            raise
        _log.info("running on the CPU: %s", error)
        return _core.Engine(threads, isa)


def _x_dtype(weight_format: str, given: str | None) -> str:
    """The type of activations to compile for."""
    return given or (weight_format if weight_format in DTYPES else "bf16")


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
        self._core = _make_core(self.config)
        self._gpu = self._core.gpu_name
        self._kernels = None if self._gpu is None else EngineKernels(self._core)
        self._calibrator = None if self._gpu is None else self._make_calibrator()
        self._usage = UsageRecords(self) if self._gpu is not None and self.config.warm_start else None
        self._layers: list[Layer] = []
        self._warned_of_pinning = False

    def _make_calibrator(self) -> Calibrator:
        from moerun.calibration import Calibrator

        return Calibrator(self.config.calibration)

    def add_layer(
        self,
        spec: LayerSpec,
        tensors: dict[str, Any] | ExpertMemory | ExpertBlobs,
        x_dtype: str | None = None,
    ) -> Layer:
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
        x_dtype
            Type of the activations to come, "fp32", "fp16" or "bf16": an engine with a GPU compiles its
            kernels for it now, before any expert is copied. None means that of the weights, or bf16 for
            quantised ones. Other types are compiled for when they come first.

        Raises
        ------
        ValueError, TypeError
            A tensor that is missing, not expected, or of another shape or type than the spec says; a weight
            that ``spec.quant`` cannot hold.
        moerun.errors.KernelError
            The GPU's kernels cannot be compiled.
        """
        if not isinstance(spec, LayerSpec):
            raise TypeError(f"spec must be a LayerSpec, got {type(spec).__name__}")
        if not isinstance(tensors, (Mapping, ExpertMemory, ExpertBlobs)):
            raise TypeError(
                f"tensors must be a dict, an ExpertMemory or ExpertBlobs, got {type(tensors).__name__}"
            )
        memory = memory_of(spec, tensors) if isinstance(tensors, Mapping) else tensors
        check_memory(spec, memory)
        stored = memory.format if isinstance(memory, ExpertBlobs) else memory.dtype
        self._prepare_kernels(spec, spec.quant or stored, x_dtype)
        if isinstance(memory, ExpertMemory) and spec.quant not in (None, memory.dtype):
            from moerun.quant import quantise_layer

            memory = quantise_layer(spec, memory, spec.quant, self.config.cpu_threads, self.config.isa)
        weight_format = memory.format if isinstance(memory, ExpertBlobs) else memory.dtype
        x_dtype = _x_dtype(weight_format, x_dtype)
        layer = Layer(self, spec, self._add(spec, memory), weight_format, x_dtype)
        if self._kernels is not None:
            self._kernels.ensure(layer._core, spec, weight_format, x_dtype)
        self._layers.append(layer)
        self._check_pinning()
        if self._calibrator is not None:
            self._calibrator.ensure(layer)
        return layer

    def add_layer_from(
        self,
        checkpoint: Checkpoint,
        layer_index: int,
        quant: str | None = None,
        on_progress: Callable[[int], object] | None = None,
        x_dtype: str | None = None,
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
        x_dtype
            As for add_layer.

        Raises
        ------
        ValueError
            The layer has no experts (the message names those that have some), the format is unknown, cannot
            hold a weight, or the checkpoint is already quantised in another one.
        """
        layer = self._add_layer_from(checkpoint, layer_index, quant, on_progress, x_dtype)
        if self._usage is not None:
            self._usage.add(checkpoint, layer_index, layer)
        return layer

    def _add_layer_from(
        self,
        checkpoint: Checkpoint,
        layer_index: int,
        quant: str | None,
        on_progress: Callable[[int], object] | None,
        x_dtype: str | None,
    ) -> Layer:
        spec = dataclasses.replace(checkpoint.spec(layer_index), quant=quant)
        if quant in (None, checkpoint.expert_dtype):
            return self.add_layer(spec, checkpoint.experts(layer_index), x_dtype)
        if checkpoint.expert_dtype not in DTYPES:
            raise ValueError(
                f"the experts of {checkpoint.path} are stored as {checkpoint.expert_dtype} and cannot become "
                f"{quant}: leave the format out, or use the repository that they were quantised from"
            )
        from moerun.quant import load_quantised

        self._prepare_kernels(spec, quant, x_dtype)  # quantising takes a while
        threads, isa = self.config.cpu_threads, self.config.isa
        blobs = load_quantised(checkpoint, layer_index, quant, threads, isa, on_progress)
        return self.add_layer(spec, blobs, x_dtype)

    def _prepare_kernels(self, spec: LayerSpec, weight_format: str, x_dtype: str | None) -> None:
        if x_dtype is not None and x_dtype not in DTYPES:
            raise ValueError(f"x_dtype {x_dtype!r} is unknown; known: {', '.join(DTYPES)}")
        if self._kernels is not None:
            self._kernels.prepare(spec, weight_format, _x_dtype(weight_format, x_dtype))

    def start(self) -> None:
        """Says that all layers are there: the GPU's cache begins to fill with the experts that earlier runs
        used most (EngineConfig.warm_start). Without this the first batch says so. Needless without a GPU.
        """
        if self._gpu is not None:
            self._core.start()

    def _check_pinning(self) -> None:
        """Says once, or raises if store="pinned", that experts lie in memory that is not page-locked."""
        why = self._core.why_not_pinned
        if self._kernels is None or not why or self.config.store == "staged" or self._warned_of_pinning:
            return
        if self.config.store == "pinned":
            raise GpuError(f"the experts cannot be page-locked: {why}; use store='auto' or 'staged'")
        self._warned_of_pinning = True
        _log.warning("copies to the GPU go through staging buffers, which is slower: %s", why)

    def add_linear(self, weight: Any, bias: Any = None, quant: str | None = None) -> Linear:
        """A dense linear layer ``[outputs, inputs]`` that runs on this engine's threads, with its kernels.

        For the parts of a model around the experts; moerun.dense has attention, routers and norms too. With
        ``quant``, one of WEIGHT_FORMATS, the weight is quantised now, and the given memory not needed any
        more. Raises ValueError if shapes or types do not fit, or the format cannot hold a weight.
        """
        return Linear(self, weight, bias, quant)

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
    def gpu(self) -> str | None:
        """Name of the GPU that runs experts; None in an engine without one."""
        return self._gpu

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in the order in which they were added."""
        return tuple(self._layers)

    def stats(self) -> dict[str, Any]:
        """What was done so far.

        ``cpu_threads``, ``isa``, ``workspace_bytes`` and, per layer in ``layers``: ``batches``, ``tokens``,
        ``seconds``, ``weight_bytes`` (of active experts, once per batch) and ``expert_tokens``, int64 [E].

        With a GPU also ``gpu``: ``slots`` and those ``resident``; ``hits`` and ``misses`` (active experts
        that were cached when their layer ran, or not), ``evictions``; ``copies`` that were demanded and
        ``copied_bytes``; ``prefetches`` begun, ``prefetches_completed``, ``_promoted`` (demanded before they
        were over), ``_cancelled``, ``_used``, ``_wasted`` (evicted unused) and ``prefetched_bytes``; among
        them ``warm_copies`` of experts that earlier runs used; of experts that were predicted 1, 2 and 3
        layers ahead ``predictions``, and ``predictions_correct`` that came to be used;
        ``h2d_bytes_per_second`` of demanded copies as the device timed them.

        Of ``steps`` (batches of a layer; ``gpu_steps`` had a share on the GPU): the sums of their makespans,
        from the begin until the last expert is done, ``planned_seconds`` and ``observed_seconds``, and how
        long of the latter CPU, GPU and bus each was busy, ``cpu_seconds``, ``gpu_seconds`` and
        ``copy_seconds``, and idle, ``cpu_idle_seconds``, ``gpu_idle_seconds`` and ``copy_idle_seconds``.
        """
        return self._core.stats()

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Writes the latest events as a timeline in Chrome's trace format, one lane per thread.

        Open it in chrome://tracing or ui.perfetto.dev. Raises OSError if the file cannot be
        written.
        """
        self._core.write_trace(os.fspath(path))

    def synchronize(self) -> None:
        """Waits until all submitted work is done, on the GPU too.

        Raises
        ------
        moerun.GpuError
            A batch on the GPU has gone wrong, and no call has raised it yet.
        RuntimeError
            The engine is closed or came through a fork.
        """
        self._core.synchronize()

    def close(self) -> None:
        """Finishes submitted work and ends the engine's threads. Later calls raise RuntimeError.

        An error of a batch on the GPU that no call has raised is logged (logger ``moerun``).
        """
        if self._gpu is not None and not self._core.closed:
            try:
                self._core.synchronize()
            except GpuError as error:
                _log.error("the engine is closed, and %s", str(error))  # no traceback is kept
        self._core.close()
        if self._usage is not None:
            self._usage.save()

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
