"""from_pretrained: a checkpoint becomes an ordinary transformers model with its experts in the engine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Set
from typing import TYPE_CHECKING, Any

from moerun.errors import CheckpointError, GpuError
from moerun.hf.folder import HUB_OPTIONS, checkpoint_folder
from moerun.layer_spec import DTYPES

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from moerun import Checkpoint, Engine
    from moerun.engine import Layer

MIN_TRANSFORMERS = (5, 7)
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # ours -> torch's

# Arguments of transformers' from_pretrained that cannot work here, and why.
_REFUSED = {
    "device_map": "experts are placed by the engine; load first, then move the rest with model.to(device)",
    "tp_plan": "the engine runs on one machine without tensor parallelism",
    "tp_size": "the engine runs on one machine without tensor parallelism",
    "distributed_config": "the engine runs on one machine without tensor parallelism",
    "quantization_config": "the experts are read as the checkpoint stores them, and the rest in `dtype`",
    "experts_implementation": "experts run in the engine; transformers' own from_pretrained has the others",
    "state_dict": "experts are read from the checkpoint's files",
    "gguf_file": "experts are read from safetensors files",
    "subfolder": "pass the folder itself as path",
    "variant": "experts are read from the files that the checkpoint's index names",
    "output_loading_info": "only the model is returned",
}


def from_pretrained(
    path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    engine: Engine | None = None,
    experts: str | None = None,
    dense: str | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Loads a checkpoint as an ordinary transformers model whose experts live in a moerun engine.

    Experts are never materialised in torch: the engine reads them where they lie in the files. Everything
    else (generate, streamers, batches, chat templates) is transformers' own. For inference only.

    Parameters
    ----------
    path
        A folder with config.json and safetensors, or a repository id of the Hugging Face hub.
    dtype
        What the model computes in outside of the experts: "fp32", "fp16", "bf16" or the torch dtype; None
        takes what the checkpoint was saved in.
    experts
        Number format of the experts, one of `moerun.WEIGHT_FORMATS` ("int8", "int4_g32", ...). They are
        quantised on all threads and kept on disk ($MOERUN_CACHE), mapped from there the next time. None
        leaves them as the checkpoint stores them.
    dense
        Number format of the matrices around the experts (attention, shared experts, the head), on the CPU:
        quantised at loading, without a cache; refused if they go to the GPU. A 4-bit format leaves the head
        at 8 bits (int8_g128). None leaves them in `dtype`.
    engine
        An engine to put the experts into. None makes one, which lives as long as the model or a copy of it.
    options
        The fields of `moerun.EngineConfig` configure the engine that is made (cpu_threads=8, device="cuda",
        gpu_cache="8GiB", ...); everything else goes to transformers' `AutoModelForCausalLM.from_pretrained`
        (attn_implementation="eager", ...).

    With a GPU in the engine, the model's other parts go to the GPU too if torch can use it, before the cache
    takes what is left; else they stay on the CPU.

    Returns
    -------
    PreTrainedModel
        In eval mode; `model.moerun_engine` is the engine.

    Raises
    ------
    ImportError
        transformers is missing or older than 5.7.
    moerun.CheckpointError
        No such folder, an unknown family, or a checkpoint that cannot be read.
    moerun.GpuError, moerun.errors.KernelError
        device="cuda" where no GPU can be used, or none of the kernels.
    ValueError
        An argument that cannot work here, such as device_map, an unknown dtype or format, or a gpu_cache that
        is too small or too large.
    """
    check_transformers()
    from moerun import WEIGHT_FORMATS, Checkpoint, Engine, EngineConfig

    if experts is not None and experts not in WEIGHT_FORMATS:
        raise ValueError(f"experts must be one of {', '.join(WEIGHT_FORMATS)}, or None; got {experts!r}")
    if dense is not None and dense not in WEIGHT_FORMATS:
        raise ValueError(f"dense must be one of {', '.join(WEIGHT_FORMATS)}, or None; got {dense!r}")
    for name in sorted(_REFUSED.keys() & options.keys()):
        raise ValueError(f"moerun.hf.from_pretrained takes no {name}: {_REFUSED[name]}")
    dtype = _torch_name(dtype)
    hub_options = _take(options, HUB_OPTIONS)
    engine_options = _take(options, {field.name for field in dataclasses.fields(EngineConfig)})
    if engine is not None and engine_options:
        raise ValueError(
            f"{', '.join(engine_options)} would configure a new engine, but one was passed; "
            "configure that one"
        )

    config = EngineConfig(**engine_options)
    if engine is None and config.device == "cuda":
        _check_gpu()  # loading takes a while
    folder = checkpoint_folder(path, **hub_options)
    checkpoint = Checkpoint(folder)
    with_gpu = (config.device != "cpu" if engine is None else engine.gpu is not None) and _torch_has_gpu()
    if with_gpu and dense is not None:
        raise ValueError(
            f"dense={dense!r} is for matrices that the CPU multiplies, but here they go to the GPU, in "
            "`dtype`; leave dense out, or use device='cpu'"
        )
    model = _load_dense(folder, checkpoint, dtype, options)
    if with_gpu:
        model.to("cuda")  # type: ignore[arg-type]
    if engine is not None:
        _attach(model, engine, checkpoint, experts, dense)
        return model
    engine = Engine(config)  # now, as gpu_cache="auto" takes what the dense parts leave
    try:
        _attach(model, engine, checkpoint, experts, dense)
    except BaseException:
        engine.close()
        raise
    return model


def check_transformers() -> None:
    """Raises ImportError if transformers is missing or too old."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError("moerun.hf needs transformers: pip install 'moerun[hf]'") from error
    if tuple(map(int, transformers.__version__.split(".")[:2])) < MIN_TRANSFORMERS:
        wanted = ".".join(map(str, MIN_TRANSFORMERS))
        raise ImportError(
            f"moerun.hf needs transformers >= {wanted}, found {transformers.__version__}: "
            "pip install -U 'moerun[hf]'"
        )


def _torch_name(dtype: str | torch.dtype | None) -> str:
    """The name by which transformers knows `dtype`."""
    name = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    name = _DTYPES.get(name, name)
    if name != "auto" and name not in _DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)} (or torch's), or None; got {dtype!r}")
    return name


def _take(options: dict[str, Any], names: Set[str]) -> dict[str, Any]:
    """Moves the options called `names` out of `options`."""
    return {name: options.pop(name) for name in sorted(names & options.keys())}


def _check_gpu() -> None:
    """Raises GpuError, saying why, if this machine shows no GPU."""
    from moerun import _core

    probe = _core.probe_gpu()
    if not probe["devices"]:
        raise GpuError(probe["reason"])


def _torch_has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _load_dense(folder: str, checkpoint: Checkpoint, dtype: str, options: dict[str, Any]) -> PreTrainedModel:
    """The model in host memory, without its experts."""
    from transformers import AutoModelForCausalLM

    from moerun.hf.experts import IMPLEMENTATION
    from moerun.hf.quantizer import MoerunConfig

    if checkpoint.expert_dtype not in DTYPES:
        options = {"config": _config_without_quantisation(folder, checkpoint), **options}
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=MoerunConfig(moe_layers=list(checkpoint.moe_layers)),
        experts_implementation=IMPLEMENTATION,
        **options,
    )


def _attach(
    model: PreTrainedModel,
    engine: Engine,
    checkpoint: Checkpoint,
    experts: str | None,
    dense: str | None,
) -> None:
    """Gives the model its experts, and what the CPU is to run of the rest to the engine's kernels."""
    from moerun.hf.attention import attach_attention
    from moerun.hf.attention_step import attach_attention_steps
    from moerun.hf.decoder_step import attach_decoder_steps
    from moerun.hf.dense import attach_linears
    from moerun.hf.experts import attach_layers
    from moerun.hf.hints import attach_hints
    from moerun.hf.model_step import attach_model_step
    from moerun.hf.norm import attach_norms
    from moerun.hf.router import attach_routers

    x_dtype = next(ours for ours, theirs in _DTYPES.items() if theirs == _torch_name(model.dtype))
    layers = _add_layers(engine, checkpoint, experts, x_dtype)
    attach_layers(model, layers)
    engine.start()
    if engine.gpu is None:
        model.to("cpu")  # type: ignore[arg-type]  # device="auto" has found no GPU that the engine can use
    if model.device.type == "cpu":
        attach_linears(model, engine, dense)
        attach_attention(model, engine)
        attach_norms(model, engine)
        attach_attention_steps(model, engine)
        attach_routers(model, engine)
        if engine.gpu is None:
            attach_decoder_steps(model, engine)
            attach_model_step(model)
    attach_hints(model, engine, layers)
    model.moerun_engine = engine  # type: ignore[assignment]


def _config_without_quantisation(folder: str, checkpoint: Checkpoint) -> Any:
    """The config of a checkpoint whose experts are packed: transformers has nothing to do with them."""
    from transformers import AutoConfig

    others = checkpoint.packed_elsewhere
    if others:
        raise CheckpointError(
            f"{folder}: expected only experts to be quantised, found {others[0]!r} and {len(others) - 1} "
            "more outside of them; use the repository that this checkpoint was quantised from, with "
            "experts=FORMAT"
        )
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _add_layers(
    engine: Engine, checkpoint: Checkpoint, experts: str | None, x_dtype: str
) -> dict[int, Layer]:
    """All layers with experts, by number."""
    from moerun.quant import ExpertsBar

    counts = {number: checkpoint.spec(number).num_experts for number in checkpoint.moe_layers}
    layers = {}
    with ExpertsBar(sum(counts.values()), experts or "pinned memory") as bar:
        for number, count in counts.items():
            quantised = bar if experts is not None else None
            layers[number] = engine.add_layer_from(checkpoint, number, experts, quantised, x_dtype)
            if experts is None:  # used where they lie, or copied to pinned memory for a GPU
                bar(count)
    return layers
