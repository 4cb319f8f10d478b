"""Reads config.json and hands out its fields checked, so that a wrong one fails here and by name."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from moerun.checkpoint.problem import problem, shown
from moerun.checkpoint.source_file import read_json_object

CONFIG_FILE = "config.json"
_MAX_SIZE = 2**31 - 1


class ModelConfig:
    """The fields of one language model, with the file that they come from for the error messages."""

    def __init__(self, file: Path, fields: dict[str, Any]) -> None:
        self.file = file
        self.fields = fields

    def size(self, *names: str, at_most: int = _MAX_SIZE) -> int:
        """Returns the first of these fields that is set: a positive integer."""
        name = next((name for name in names if self.fields.get(name) is not None), None)
        if name is None:
            raise problem(
                self.file, f"field {' or '.join(map(repr, names))}", "a positive integer", "no field"
            )
        value = self.fields[name]
        if type(value) is not int or not 1 <= value <= at_most:
            raise problem(self.file, f"field {name!r}", f"an integer from 1 to {at_most}", shown(value))
        return value

    def count(self, name: str) -> int:
        """Returns a field that must be there: an integer that may be 0."""
        value = self.fields.get(name)
        if type(value) is not int or not 0 <= value <= _MAX_SIZE:
            raise problem(self.file, f"field {name!r}", f"an integer from 0 to {_MAX_SIZE}", shown(value))
        return value

    def number(self, name: str, default: float) -> float:
        """Returns a field that may be missing: a finite number."""
        value = self.fields.get(name, default)
        if type(value) not in (int, float) or not abs(value) <= 1e30:
            raise problem(self.file, f"field {name!r}", "a finite number", shown(value))
        return float(value)

    def integers(self, name: str) -> list[int]:
        """Returns a field that may be missing or null: a list of integers."""
        value = self.fields.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise problem(self.file, f"field {name!r}", "a list of integers", shown(value))
        return value


def read_config(folder: Path, known_families: Container[str]) -> ModelConfig:
    """Reads a folder's config.json; of a model with several parts (images and text), the text model's.

    Raises
    ------
    CheckpointError
        No config.json, or one that is not a JSON object.
    """
    file = folder / CONFIG_FILE
    # Repeated keys are allowed here, the last one counts: transformers reads it so.
    fields = read_json_object(file, unique_keys=False)
    text = fields.get("text_config")
    if isinstance(text, dict) and fields.get("model_type") not in known_families:
        # What concerns all parts stands outside.
        outer = {key: fields[key] for key in ("quantization_config",) if key in fields}
        return ModelConfig(file, {**outer, **text})
    return ModelConfig(file, fields)
