"""The key-value cache: what is taken back, moved and put back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, GptOssConfig, StaticCache

from moerun.big_little import cache as kv


def filled(rows: int, columns: int) -> DynamicCache:
    """Two layers, keys and values of different width; an entry tells its row and column."""
    cache = kv.new_cache()
    place = torch.arange(rows)[:, None] * 1000.0 + torch.arange(columns)
    for layer in range(2):
        keys = place[:, None, :, None].repeat(1, 3, 1, 4)
        cache.update(keys, keys[..., :2] + 0.5, layer)
    return cache


@given(st.integers(1, 4).flatmap(lambda b: st.lists(st.integers(0, 5), min_size=b, max_size=b)))
def test_rows_lose_their_own_number_of_columns_and_end_together(counts: list[int]) -> None:
    columns = 7
    cache, mask = filled(len(counts), columns), torch.ones(len(counts), columns, dtype=torch.long)
    kv.drop_per_row(cache, counts)
    mask = kv.moved_mask(mask, counts)
    assert cache.get_seq_length() == mask.shape[1] == columns - min(counts)
    for row, count in enumerate(counts):
        kept = [1000.0 * row + column for column in range(columns - count)]
        for layer in cache.layers:
            seen = mask[row].bool()
            assert layer.keys[row, 0, seen, 0].tolist() == kept
            assert layer.values[row, 2, seen, 1].tolist() == [value + 0.5 for value in kept]
        assert mask[row].tolist() == [0] * (count - min(counts)) + [1] * len(kept)


def test_columns_are_dropped_and_put_back_for_some_rows() -> None:
    cache = filled(3, 5)
    before = kv.last_columns(cache, 2)
    kv.drop_columns(cache, 2)
    assert cache.get_seq_length() == 3
    for layer, width in ((0, 4), (1, 4)):
        cache.update(torch.zeros(3, 3, 2, width), torch.zeros(3, 3, 2, 2), layer)
    kv.restore_columns(cache, before, torch.tensor([True, False, True]))
    assert cache.layers[1].keys[0, 0, :, 0].tolist() == [0, 1, 2, 3, 4]
    assert cache.layers[1].keys[1, 0, :, 0].tolist() == [1000, 1001, 1002, 0, 0]
    assert cache.layers[0].values[2, 1, :, 0].tolist() == [2000.5, 2001.5, 2002.5, 2003.5, 2004.5]


SLIDING = DynamicCache(config=GptOssConfig(num_hidden_layers=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache_implementation": "static"}, "cache 'static'"),
        ({"use_cache": False}, "use_cache=False"),
        ({"past_key_values": SLIDING}, "DynamicSlidingWindowLayer"),
        ({"past_key_values": StaticCache(GptOssConfig(num_hidden_layers=2), max_cache_len=8)}, "StaticCache"),
        ({"past_key_values": ((1, 2),)}, "tuple"),
        (
            {"config": SimpleNamespace(model_type="qwen3_next", layer_types=["linear_attention"])},
            "qwen3_next .*linear_attention",
        ),
    ],
)
def test_what_cannot_be_rewound_is_refused_by_name(arguments: dict, message: str) -> None:
    usual = {"config": None, "past_key_values": None, "cache_implementation": None, "use_cache": True}
    kv.check_cache(**usual)
    kv.check_cache(**{**usual, "past_key_values": filled(1, 3)})
    with pytest.raises(ValueError, match=message):
        kv.check_cache(**{**usual, **arguments})
