"""What `make demo` runs: a small Mixture-of-Experts model of Python source text continues a piece of Python.

Loads the trained checkpoint beside this file, streams the continuation, then prints the speed and which
experts did the work. For prompts and checkpoints of your own: moerun generate CHECKPOINT "prompt".
"""

from __future__ import annotations

from pathlib import Path

import moerun
import moerun.hf
import torch
from moerun.hf.streaming import TimedStreamer
from moerun.usage import usage_table
from transformers import AutoTokenizer
from transformers.utils import logging

CHECKPOINT = Path(__file__).parent / "pycode-moe"
PROMPT = """\
class Node:
    def __init__(self, value, parent=None):
        self.value = value
        self.parent = parent
        self.children = []

    def """


def main(new_tokens: int = 120) -> None:
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    model = moerun.hf.from_pretrained(CHECKPOINT)
    prompt = tokenizer(PROMPT, return_tensors="pt")

    streamer = TimedStreamer(tokenizer)
    torch.manual_seed(0)
    model.generate(
        **prompt,
        max_new_tokens=new_tokens,
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
        repetition_penalty=1.1,
        streamer=streamer,
    )

    print(f"\n{streamer.speed()}\n")
    layers = moerun.Checkpoint(CHECKPOINT).moe_layers
    usage = model.moerun_engine.stats()["layers"]
    print(usage_table({number: layer["expert_tokens"] for number, layer in zip(layers, usage, strict=True)}))


if __name__ == "__main__":
    main()
