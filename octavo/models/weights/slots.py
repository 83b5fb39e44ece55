"""Which tensor of a Hugging Face checkpoint goes where in a model: data that each family declares beside itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class To:
    """A module of the model (and a part of it), and what happens to the tensor on the way."""

    module: str  # path; {} is the number of the layer
    part: str | None = None
    transpose: bool = False  # stored as [in, out]
    offset: float = 0.0  # added to every element


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """`targets` maps names without prefix and last piece (.weight, .bias) to their place.

    Of `prefixes` the first that fits is dropped, endings in `renamed` are replaced; tensors that match one of `ignored`
    carry nothing the model needs.
    """

    targets: Mapping[str, To]
    prefixes: tuple[str, ...] = ("model.",)
    ignored: tuple[str, ...] = (r"\.rotary_emb\.inv_freq$",)
    renamed: Mapping[str, str] = field(default_factory=dict)

    def canonical(self, name: str) -> str | None:
        """The name as in `targets` with its last piece; None when ignored."""
        prefix = next((prefix for prefix in self.prefixes if name.startswith(prefix)), "")
        short = name[len(prefix) :]
        for old, new in self.renamed.items():
            short = short.removesuffix(old) + new if short.endswith(old) else short
        return None if any(re.search(pattern, short) for pattern in self.ignored) else short
