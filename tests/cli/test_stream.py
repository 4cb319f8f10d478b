"""Streaming: pieces add up to the text and never cut a character; times are what the clock said."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moerun.cli.stream import REPLACEMENT, Detokenizer, TokenStream


def decode_bytes(tokens):
    """A byte-level tokenizer: every token is one byte of UTF-8."""
    return bytes(tokens).decode("utf-8", errors="replace")


def decode_words(tokens):
    """A tokenizer in SentencePiece's manner: the space before the first word of a sequence is dropped."""
    return "".join(f" w{token}" for token in tokens)[1:]


def given_out(detokenizer, tokens):
    return [detokenizer.add(token) for token in tokens] + [detokenizer.finish()]


@given(prompt=st.text(), text=st.text())
def test_pieces_add_up_and_hold_whole_characters(prompt, text):
    out = given_out(Detokenizer(decode_bytes, list(prompt.encode())), text.encode())
    assert "".join(out) == text
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in piece for piece in out)


@given(st.binary())
def test_bytes_that_are_no_text_are_shown_and_not_held_back_forever(data):
    detokenizer = Detokenizer(decode_bytes, [])
    shown = 0
    for count, byte in enumerate(data, start=1):
        shown += len(detokenizer.add(byte))
        assert shown > 0 or count < 4
    assert shown > 0 or len(data) < 4


@given(prompt=st.lists(st.integers(0, 99), min_size=1), tokens=st.lists(st.integers(0, 99)))
def test_spaces_between_words_survive(prompt, tokens):
    out = "".join(given_out(Detokenizer(decode_words, prompt), tokens))
    assert decode_words(prompt) + out == decode_words(prompt + tokens)


def test_characters_come_out_as_soon_as_they_are_complete():
    out = given_out(Detokenizer(decode_bytes, []), "aé🙂".encode())
    assert out == ["a", "", "é", "", "", "", "🙂", ""]


def stream_tokens(stream, prompt, tokens):
    stream.put(torch.tensor([list(prompt)]))
    for token in tokens:
        stream.put(torch.tensor([token]))
    stream.end()


def test_timing_separates_prefill_from_decode():
    clock = itertools.chain([10.0, 12.0, 12.5, 13.0, 13.5]).__next__
    written, firsts = [], []
    stream = TokenStream(decode_bytes, written.append, lambda: firsts.append(list(written)), clock)
    stream_tokens(stream, b"four", b"more")
    timing = stream.timing()
    assert (timing.prompt_tokens, timing.new_tokens) == (4, 4)
    assert (timing.prefill_s, timing.decode_s) == (2.0, 1.5)
    assert timing.prefill_tokens_per_s == pytest.approx(2.0)
    assert timing.decode_tokens_per_s == pytest.approx(2.0)
    assert "".join(written) == stream.text == "more"
    assert firsts == [[]]


@pytest.mark.parametrize("tokens", [b"", b"x"])
def test_without_a_second_token_there_is_no_decode_speed(tokens):
    stream = TokenStream(decode_bytes, lambda _: None, clock=itertools.count().__next__)
    stream_tokens(stream, b"prompt", tokens)
    assert stream.timing().decode_tokens_per_s == 0.0


def test_before_anything_came_the_timing_is_zero():
    timing = TokenStream(decode_bytes, lambda _: None).timing()
    assert (timing.prompt_tokens, timing.new_tokens, timing.prefill_tokens_per_s) == (0, 0, 0.0)
