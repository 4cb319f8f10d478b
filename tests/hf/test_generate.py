"""Generation with a trained checkpoint: what transformers offers works as it does with eager experts."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from threading import Thread

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextIteratorStreamer,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer

import moerun.hf

CHECKPOINT = Path(__file__).parents[2] / "examples" / "pycode-moe"
PROMPT = "import os\n\n\ndef read(path):\n"
CHAT_TEMPLATE = "{% for message in messages %}# {{ message.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return moerun.hf.from_pretrained(CHECKPOINT, dtype="fp32", cpu_threads=1)


@pytest.fixture(scope="module")
def eager() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        CHECKPOINT, dtype=torch.float32, experts_implementation="eager"
    )


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT, padding_side="left")


@pytest.fixture
def prompt(tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    return tokenizer(PROMPT, return_tensors="pt")


def test_sampling_with_a_seed(model: PreTrainedModel, eager: PreTrainedModel, prompt: dict) -> None:
    def sample(sampled: PreTrainedModel) -> torch.Tensor:
        torch.manual_seed(3)
        return sampled.generate(
            **prompt, do_sample=True, temperature=0.8, top_p=0.9, num_return_sequences=2, max_new_tokens=40
        )

    assert torch.equal(sample(model), sample(eager))


def test_beam_search(model: PreTrainedModel, eager: PreTrainedModel, prompt: dict) -> None:
    options = {"num_beams": 3, "max_new_tokens": 20, "do_sample": False}
    assert torch.equal(model.generate(**prompt, **options), eager.generate(**prompt, **options))


def test_static_cache(model: PreTrainedModel, eager: PreTrainedModel, prompt: dict) -> None:
    options = {"max_new_tokens": 20, "do_sample": False}
    ours = model.generate(**prompt, **options, cache_implementation="static")
    assert torch.equal(ours, eager.generate(**prompt, **options))


def test_batch_equals_its_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [PROMPT, "class Node:\n", "x = 1\n"]
    options = {"max_new_tokens": 30, "do_sample": False}

    def continued(rows: list[str]) -> list[str]:
        ids = model.generate(**tokenizer(rows, return_tensors="pt", padding=True), **options)
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    assert continued(texts) == [continued([text])[0] for text in texts]


def test_continuous_batching(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [tokenizer(text).input_ids for text in (PROMPT, "class Node:\n", "x = 1\n")]
    expected = [
        model.generate(torch.tensor([row]), do_sample=False, max_new_tokens=12)[0, len(row) :].tolist()
        for row in rows
    ]
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    small = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)  # by default, most of the free memory
    outputs = model.generate_batch(rows, generation_config=config, continuous_batching_config=small)
    assert [output.generated_tokens for output in outputs.values()] == expected


def test_streaming_from_another_thread(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: dict
) -> None:
    options = {"max_new_tokens": 30, "do_sample": False}
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = Thread(target=model.generate, kwargs={**prompt, **options, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    whole = model.generate(**prompt, **options)[0, prompt["input_ids"].shape[1] :]
    assert len(pieces) > 3
    assert "".join(pieces) == tokenizer.decode(whole, skip_special_tokens=True)


def test_chat_template(
    model: PreTrainedModel, eager: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    chat = [{"role": "user", "content": "read a file"}, {"role": "user", "content": "line by line"}]
    inputs = tokenizer.apply_chat_template(
        chat, chat_template=CHAT_TEMPLATE, return_tensors="pt", return_dict=True
    )
    options = {"max_new_tokens": 20, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), eager.generate(**inputs, **options))


def test_pipeline(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    (answer,) = generate(PROMPT, max_new_tokens=10, do_sample=False)
    assert answer["generated_text"].startswith(PROMPT)
    assert len(answer["generated_text"]) > len(PROMPT)


class Interrupt(BaseStreamer):
    """Presses Ctrl-C at the third new token."""

    def __init__(self) -> None:
        self.tokens = 0

    def put(self, value: torch.Tensor) -> None:
        self.tokens += 1
        if self.tokens == 4:  # the first is the prompt
            os.kill(os.getpid(), signal.SIGINT)

    def end(self) -> None:
        pass


def test_ctrl_c_leaves_the_engine_usable(
    model: PreTrainedModel, eager: PreTrainedModel, prompt: dict
) -> None:
    streamer = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        model.generate(**prompt, max_new_tokens=500, streamer=streamer)
    assert streamer.tokens == 4
    options = {"max_new_tokens": 10, "do_sample": False}
    assert torch.equal(model.generate(**prompt, **options), eager.generate(**prompt, **options))
