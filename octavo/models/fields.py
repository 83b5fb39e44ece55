"""Reads a model's configuration (the content of config.json) with suspicion: types, ranges, nothing unsupported.

Everything wrong is a CheckpointError that names the field, raised before any memory is taken for weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from octavo.errors import CheckpointError
from octavo.layers.rotary import ROPE_TYPES, Rope

MAX_HEAD_SIZE = 1024


class Fields:
    """A configuration and its family. Without default a field is required; null counts as missing."""

    def __init__(self, values: Mapping[str, Any], model_type: str) -> None:
        self.values = values
        self.model_type = model_type

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise CheckpointError(f"the model's configuration lacks {name!r}")
        return default

    def whole(self, name: str, default: int | None = None, *, high: int, low: int = 1) -> int:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise CheckpointError(
                f"{name} in the configuration must be a whole number from {low} to {high}, not {value!r}"
            )
        return value

    def real(self, name: str, default: float | None = None, *, low: float = 0.0, high: float = 1e12) -> float:
        """A number above `low`."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
            raise CheckpointError(f"{name} in the configuration must be a number above {low:g}, not {value!r}")
        return float(value)

    def maybe_real(self, name: str, default: float | None = None) -> float:
        """0 where the field is null or missing without default."""
        value = self.values.get(name, default)
        return 0.0 if value is None else self.real(name, value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{name} in the configuration must be true or false, not {value!r}")
        return value

    def choice(self, name: str, options: Collection[str], default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str) or value not in options:
            raise CheckpointError(f"{name} {value!r} is not supported; these are: {', '.join(sorted(options))}")
        return value

    def only(self, name: str, value: Any) -> None:
        """A field that may only have this value (or be missing)."""
        if self._get(name, value) != value:
            raise CheckpointError(
                f"{name} {self.values[name]!r} is not supported for {self.model_type}, only {value!r}"
            )

    def rope(self, layer_type: str | None = None, default_base: float = 10000.0) -> Rope:
        """From `rope_parameters` (new style, perhaps one per layer type) or `rope_theta` and `rope_scaling`."""
        found = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if isinstance(found, Mapping) and layer_type in found:
            found = found[layer_type]
        if not isinstance(found, Mapping):
            raise CheckpointError(f"the rope settings of the configuration must be an object, not {found!r}")
        scaling = Fields({"rope_theta": self.values.get("rope_theta"), **found}, self.model_type)
        kind = scaling.values.get("rope_type", scaling.values.get("type")) or "default"
        if kind not in ROPE_TYPES:
            raise CheckpointError(f"rope type {kind!r} is not supported; these are: {', '.join(ROPE_TYPES)}")
        scaling.only("partial_rotary_factor", 1.0)
        longest = self.whole("max_position_embeddings", 2**12, high=MAX_POSITIONS)
        factor = 1.0 if kind == "default" else scaling.real("factor")
        return Rope(
            base=scaling.real("rope_theta", default_base, low=1.0),
            type=kind,
            factor=factor,
            original_max_position=scaling.whole("original_max_position_embeddings", longest, high=MAX_POSITIONS),
            low_freq_factor=(low := scaling.real("low_freq_factor", 1.0)),
            high_freq_factor=scaling.real("high_freq_factor", 4.0, low=low),
            beta_fast=scaling.real("beta_fast", 32.0),
            beta_slow=scaling.real("beta_slow", 1.0),
            attention_factor=_attention_factor(scaling, factor) if kind == "yarn" else 1.0,
            truncate=scaling.flag("truncate", True),
        )


MAX_POSITIONS = 2**24


def _attention_factor(scaling: Fields, factor: float) -> float:
    """How much yarn sharpens attention: given, or from the length factor."""

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    given = scaling.maybe_real("attention_factor")
    over, under = scaling.maybe_real("mscale"), scaling.maybe_real("mscale_all_dim")
    return given or (magnitude(over) / magnitude(under) if over and under else magnitude(1.0))
