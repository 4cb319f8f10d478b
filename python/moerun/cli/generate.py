"""``moerun generate``: continues a prompt with a checkpoint whose experts run in the engine.

The text goes to stdout as it comes, everything else to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from moerun import policy
from moerun.cli import arguments, big_little
from moerun.cli.generation_report import ExpertClock, figures, render
from moerun.cli.gpu_report import gpu_table
from moerun.cli.prompt import encode, read_prompt
from moerun.cli.stream import TokenStream
from moerun.engine_config import DEVICES
from moerun.layer_spec import WEIGHT_FORMATS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from moerun import BigLittle, Engine
    from moerun.big_little.statistics import Statistics

EXAMPLES = """\
examples:
  moerun generate ./OLMoE-1B-7B "The capital of France is"
  moerun generate ./Qwen3-30B-A3B --chat "Why is the sky blue?" --max-new-tokens 400
  moerun generate ./OLMoE-1B-7B - < prompt.txt > text.txt
  moerun generate ./OLMoE-1B-7B "Once upon a time" --experts int4_g32 --dense int8
  moerun generate ./Qwen3-30B-A3B "Once upon a time" --device cuda --gpu-cache 8GiB
  moerun generate ./OLMoE-1B-7B "Once upon a time" --big-little 0.7 --stats
  moerun generate ./OLMoE-1B-7B "Once" --temperature 0.8 --top-p 0.95 --seed 7
"""


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Add ``moerun generate`` to the command line."""
    parser = subparsers.add_parser(
        "generate",
        parents=[common],
        help="continue a prompt",
        description="Continues a prompt, greedily unless a temperature is given.\n"
        "The text goes to stdout as it comes, speed and memory to stderr.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_checkpoint(parser)
    # Not optional: with an optional PROMPT, argparse of Python 3.10 refuses options after CKPT.
    parser.add_argument("prompt", metavar="PROMPT", help="text to continue; - reads it from stdin")
    parser.add_argument("--echo", action="store_true", help="print the prompt before its continuation")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument(
        "--max-new-tokens", type=arguments.count, default=128, metavar="N", help="default: 128"
    )
    parser.add_argument(
        "--ignore-eos", action="store_true", help="go on to --max-new-tokens when the model would end"
    )
    parser.add_argument(
        "--temperature", type=arguments.non_negative, metavar="T", help="sample; 0 is greedy (default)"
    )
    parser.add_argument(
        "--top-p",
        type=arguments.fraction,
        metavar="P",
        help="sample, from the likeliest tokens that together have probability P",
    )
    parser.add_argument("--seed", type=arguments.seed, metavar="N", help="makes sampling repeatable")
    parser.add_argument(
        "--threads", type=arguments.count, metavar="N", help="default: all cores that this process may use"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="auto",
        help="what the model computes in outside of the experts (default: as saved)",
    )
    parser.add_argument(
        "--experts",
        choices=WEIGHT_FORMATS,
        metavar="FORMAT",
        help=f"quantise the experts: {', '.join(WEIGHT_FORMATS)} (default: as saved)",
    )
    parser.add_argument(
        "--dense",
        choices=WEIGHT_FORMATS,
        metavar="FORMAT",
        help="quantise the matrices around the experts, on the CPU: same formats (default: --dtype)",
    )
    big_little.add_mode(parser)
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="auto",
        help="where experts run: on the CPU, on CPU and GPU together, or as this machine allows (default)",
    )
    parser.add_argument(
        "--gpu-cache",
        type=arguments.memory_size,
        default="auto",
        metavar="SIZE",
        help="GPU memory for experts: 8GiB, 0.5 or 50%% of the GPU's, or auto (what is free; default)",
    )
    parser.add_argument(
        "--schedule",
        choices=policy.METHODS,
        default="balanced",
        metavar="NAME",
        help=f"who runs an expert: {', '.join(policy.METHODS)} (default: balanced)",
    )
    parser.add_argument(
        "--stats",
        action="store_true",
        help="also show how often each layer uses its experts, the GPU's hits, misses and copies, and what "
        "--big-little did",
    )
    parser.add_argument(
        "--json", action="store_true", help="print text and figures as one JSON object at the end"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the checkpoint, generate, report."""
    from moerun import Checkpoint
    from moerun.hf.folder import checkpoint_folder
    from moerun.usage import usage_table

    prompt = read_prompt(args.prompt)
    folder = checkpoint_folder(args.checkpoint)
    checkpoint = Checkpoint(folder)  # fails on a damaged one before torch takes seconds to import
    options = big_little.options_of(args, checkpoint)
    threads = args.threads or default_threads()

    start = time.perf_counter()
    where = {"device": args.device, "gpu_cache": args.gpu_cache, "schedule": args.schedule}
    model = load_model(folder, args.dtype, threads, args.experts, args.dense, **where)
    tokenizer = load_tokenizer(folder)
    load_s = time.perf_counter() - start

    ids = encode(tokenizer, prompt, args.chat)
    write = discard if args.json else write_now
    write(prompt if args.echo else "")
    engine: Engine = model.moerun_engine  # type: ignore[assignment]
    experts = ExpertClock(engine.stats)
    stream = TokenStream(partial(decode, tokenizer), write, experts.prefill_is_over)
    statistics = generate(model, ids, stream, args, options)

    report = figures(stream.timing(), experts, load_s, engine.gpu)
    tokens_by_layer = dict(zip(checkpoint.moe_layers, experts.tokens(), strict=True))
    if args.json:
        usage = {str(layer): tokens.tolist() for layer, tokens in tokens_by_layer.items()}
        if options is not None and statistics is not None:
            report["big_little"] = big_little.as_figures(options, statistics)
        print(json.dumps({"text": stream.text, **report, "expert_tokens_by_layer": usage}, indent=2))
        return 0
    write_now("" if stream.text.endswith("\n") else "\n")
    sections = [render(report)]
    if args.stats and options is not None and statistics is not None:
        sections.append(big_little.render(options, statistics))
    if args.stats and report["gpu"]:
        sections.append(gpu_table(report["gpu"]))
    if args.stats:
        sections.append(usage_table(tokens_by_layer))
    print("\n" + "\n\n".join(sections), file=sys.stderr)
    return 0


def default_threads() -> int:
    """All cores that this process may use."""
    from moerun import _core

    return int(_core.cpu_info()["usable_cores"])


def load_model(
    folder: str,
    dtype: str,
    threads: int,
    experts: str | None = None,
    dense: str | None = None,
    **engine_options: Any,
) -> PreTrainedModel:
    """The checkpoint as a transformers model; its torch part uses as many threads as the engine."""
    import torch
    from transformers.utils import logging

    import moerun.hf

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    torch.set_num_threads(threads)
    return moerun.hf.from_pretrained(
        folder,
        dtype=None if dtype == "auto" else dtype,
        experts=experts,
        dense=dense,
        cpu_threads=threads,
        **engine_options,
    )


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer.

    Raises
    ------
    ValueError
        The folder has none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} has no tokenizer that transformers can load (copy tokenizer.json and "
            f"tokenizer_config.json of the original model into it): {error}"
        ) from error


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Text of tokens, without end-of-text and the like."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def generate(
    model: PreTrainedModel,
    ids: torch.Tensor,
    stream: TokenStream,
    args: argparse.Namespace,
    options: BigLittle | None = None,
) -> Statistics | None:
    """Generate from ``ids`` into ``stream``; with big-little options, returns what that did."""
    import torch

    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context and ids.shape[1] + args.max_new_tokens > context:
        print(
            f"moerun: note: {ids.shape[1]} tokens of prompt and {args.max_new_tokens} new ones exceed the "
            f"{context} that this model was made for",
            file=sys.stderr,
        )
    if args.seed is not None:
        torch.manual_seed(args.seed)
    ends = {"eos_token_id": None} if args.ignore_eos else {}
    ids = ids.to(model.device)
    arguments: dict[str, Any] = {
        "max_new_tokens": args.max_new_tokens,
        "streamer": stream,
        **sampling(args.temperature, args.top_p),
        **ends,
    }
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if options is None:
        model.generate(**inputs, **arguments)  # type: ignore[operator]
        return None

    import moerun

    return moerun.generate(model, inputs, options, **arguments).statistics


def sampling(temperature: float | None, top_p: float | None) -> dict[str, Any]:
    """Arguments of transformers' generate(); they override what the checkpoint's generation_config says."""
    if temperature == 0 or (temperature is None and top_p is None):
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature or 1.0, "top_p": top_p or 1.0, "top_k": 0}


def write_now(piece: str) -> None:
    """Text to stdout without waiting for the end of the line."""
    sys.stdout.write(piece)
    sys.stdout.flush()


def discard(piece: str) -> None:
    """Text that is printed at the end, with the figures."""
