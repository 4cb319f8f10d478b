"""What each weight format loses: python -m bench.format_error. The error table of the README.

Per format: bytes of one weight; relative error of the output of one layer of experts, with Gaussian weights
and with the demo model's, as mean |difference| / mean |output| (the measure that kt-kernel's figures use) and
as a ratio of norms; perplexity of the demo model on this project's own Python files, and how often its
likeliest next token is the one of bf16. Layers run on the reference kernels with fp32 activations, so that
only the format counts; the model runs on the kernels that it would run on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import report
from bench.table import Column, Table
from moerun import QUANTISED, Checkpoint, Engine, LayerSpec, _core
from moerun.hf import from_pretrained

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "examples" / "pycode-moe"
GAUSSIAN = LayerSpec(num_experts=4, hidden_size=2048, intermediate_size=768, top_k=2)  # as Qwen3-30B-A3B
PER_ROW = "int4 per row"  # what kt-kernel does; for comparison only
WINDOW = 256  # tokens


def main() -> None:
    parser = argparse.ArgumentParser("bench.format_error", description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", choices=QUANTISED, default=list(QUANTISED))
    parser.add_argument("--tokens", type=int, default=4096, help="of text for the demo model (default 4096)")
    options = parser.parse_args()
    print(report.render(report.environment()))
    layers = {"Gaussian": (GAUSSIAN, gaussian_weights(GAUSSIAN)), "demo": demo_layer()}
    text = list(windows(options.tokens))
    base = DemoRun(None, text)
    table = Table(
        f"Error by format. Perplexity in bf16: {base.perplexity:.4f} on {len(text) * WINDOW} tokens",
        [
            Column("format", 12, left=True),
            Column("bytes/weight"),
            *(Column(f"{name} {norm}") for name in layers for norm in ("L1", "L2")),
            Column("perplexity"),
            Column("rise"),
            Column("same token"),
        ],
    )
    for name in (*options.formats, PER_ROW):
        errors = [e for spec, weights in layers.values() for e in layer_error(spec, weights, name)]
        cells = [f"{100 * error:.2f} %" for error in errors]
        if name == PER_ROW:
            table.row(name, f"{0.5:.3f}", *cells, "", "", "")
            continue
        run = DemoRun(name, text)
        table.row(
            name,
            f"{bytes_per_weight(name):.3f}",
            *cells,
            f"{run.perplexity:.4f}",
            f"{100 * (run.perplexity / base.perplexity - 1):.2f} %",
            f"{100 * (run.choices == base.choices).float().mean():.2f} %",
        )


def bytes_per_weight(name: str) -> float:
    """Of codes, scales and zero points, at GAUSSIAN's sizes."""
    hidden, inter = GAUSSIAN.hidden_size, GAUSSIAN.intermediate_size
    return _core.weight_bytes(getattr(_core.WeightFormat, name), hidden, inter) / (3 * hidden * inter)


def gaussian_weights(spec: LayerSpec) -> dict[str, torch.Tensor]:
    """Of standard deviation 0.02, in bf16."""
    generator = torch.Generator().manual_seed(0)
    experts, hidden, inter = spec.num_experts, spec.hidden_size, spec.intermediate_size
    return {
        "gate_up": (torch.randn(experts, 2 * inter, hidden, generator=generator) * 0.02).bfloat16(),
        "down": (torch.randn(experts, hidden, inter, generator=generator) * 0.02).bfloat16(),
    }


def demo_layer() -> tuple[LayerSpec, dict[str, torch.Tensor]]:
    """The demo model's middle layer."""
    checkpoint = Checkpoint(DEMO)
    layer = checkpoint.moe_layers[len(checkpoint.moe_layers) // 2]
    spec = checkpoint.spec(layer)

    def stack(projection: str) -> torch.Tensor:
        names = [
            f"model.layers.{layer}.mlp.experts.{expert}.{projection}_proj.weight"
            for expert in range(spec.num_experts)
        ]
        return torch.stack([checkpoint.tensor(name) for name in names])

    return spec, {"gate_up": torch.cat([stack("gate"), stack("up")], 1), "down": stack("down")}


def layer_error(spec: LayerSpec, weights: dict[str, torch.Tensor], name: str) -> tuple[float, float]:
    """Relative L1 and L2 of a layer's output in a format against the same weights unquantised."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, spec.hidden_size, generator=generator)
    ids = torch.randint(0, spec.num_experts, (32, 1), generator=generator)
    exact = output(spec, weights, None, x, ids)
    if name == PER_ROW:
        found = output(spec, {key: per_row(w) for key, w in weights.items()}, None, x, ids)
    else:
        found = output(spec, weights, name, x, ids)
    difference = found - exact
    return float(difference.abs().mean() / exact.abs().mean()), float(difference.norm() / exact.norm())


def output(
    spec: LayerSpec, weights: dict[str, torch.Tensor], name: str | None, x: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """x [T, H] fp32 through the experts ids [T, 1]."""
    shape = (spec.num_experts, spec.hidden_size, spec.intermediate_size, spec.top_k)
    with Engine(isa="ref") as engine:
        layer = engine.add_layer(LayerSpec(*shape, quant=name), weights)
        return layer.forward(x, ids, torch.ones(ids.shape))


def per_row(weights: torch.Tensor) -> torch.Tensor:
    """Weights rounded to 4 bits with one symmetric scale per row, and back."""
    scale = weights.float().abs().amax(-1, keepdim=True) / 7
    return (weights.float() / scale).round() * scale


def windows(tokens: int) -> Iterator[torch.Tensor]:
    """The project's Python files, one after the other, in pieces of WINDOW tokens: int64 [1, WINDOW]."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    files = sorted((ROOT / "python" / "moerun").rglob("*.py"))
    ids = torch.tensor(tokenizer.encode("\n".join(file.read_text() for file in files))[:tokens])
    for begin in range(0, len(ids) - WINDOW + 1, WINDOW):
        yield ids[None, begin : begin + WINDOW]


class DemoRun:
    """What the demo model says to a text with its experts in a format (None: as saved, in bf16)."""

    perplexity: float
    choices: torch.Tensor  # likeliest next token at each place

    def __init__(self, name: str | None, text: list[torch.Tensor]) -> None:
        model: Any = from_pretrained(DEMO, experts=name)
        loss, choices = 0.0, []
        with torch.no_grad():
            for ids in text:
                logits = model(ids).logits[0].float()
                loss += float(torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum"))
                choices.append(logits.argmax(-1))
        model.moerun_engine.close()
        self.perplexity = math.exp(loss / (len(text) * (WINDOW - 1)))
        self.choices = torch.cat(choices)


if __name__ == "__main__":
    main()
