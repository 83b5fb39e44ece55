"""Fills a model from a stream of named tensors, or with random numbers.

Generic over families and formats: names come from the model's own table, shapes from its parameters. Tensors are cast
and copied one by one, so no more than one exists beside the model; quantized ones may be packed straight from the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from octavo.checkpoint.checkpoint import shown
from octavo.errors import CheckpointError
from octavo.layers.linear import Linear
from octavo.layers.norm import LayerNorm, RMSNorm
from octavo.layers.quantization.eight_bits import EightBits
from octavo.layers.quantization.int4 import Int4
from octavo.layers.quantization.packed import QuantizedRows, pack
from octavo.layers.quantization.scheme import Scheme
from octavo.layers.rotary import HeadNorm
from octavo.models.registry import Model
from octavo.models.weights.slots import To

_SHOWN = 3  # names in an error message

Pack = Callable[[Sequence[Sequence[QuantizedRows]], Sequence[torch.dtype]], Sequence[Scheme]]


@dataclass(frozen=True, slots=True)
class _Slot:
    module: nn.Module
    shape: tuple[int, ...]
    write: Callable[[Tensor], object]
    to: To

    def fill(self, name: str, tensor: Tensor) -> None:
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"tensor {name!r} holds {tensor.dtype}: packed weights of this kind are not supported"
            )
        if self.to.transpose and tensor.dim() == 2:
            tensor = tensor.t()
        self.expect(name, tensor.shape)
        self.write(tensor.float() + self.to.offset if self.to.offset else tensor)

    def expect(self, name: str, shape: Sequence[int]) -> None:
        if tuple(shape) != self.shape:
            found, expected = list(shape), list(self.shape)
            raise CheckpointError(f"tensor {shown(name)} has shape {found}, but the configuration asks for {expected}")


class _Quantized:
    """Matrices that wait for their other parts."""

    def __init__(self) -> None:
        self._parts: dict[Linear, dict[str, tuple[str, _Slot, QuantizedRows]]] = {}

    def add(self, name: str, slot: _Slot, rows: QuantizedRows) -> None:
        if not isinstance(slot.module, Linear):
            slot.fill(name, rows.values())
            return
        slot.expect(name, rows.shape)
        self._parts.setdefault(slot.module, {})[slot.to.part or ""] = (name, slot, rows)

    def place(self, pack: Pack) -> None:
        """Packs those of which all parts are quantized; parts of the others become numbers."""
        whole: dict[Linear, list[QuantizedRows]] = {}
        for linear, parts in self._parts.items():
            expected = [""] if "" in parts else list(linear.parts)
            if len(parts) == len(expected):
                whole[linear] = [parts[part][2] for part in expected]
            else:
                for name, slot, rows in parts.values():
                    slot.fill(name, rows.values())
        dtypes = [linear.specs["weight"].dtype for linear in whole]
        for linear, scheme in zip(whole, pack(list(whole.values()), dtypes), strict=True):
            linear.adopt(scheme)


@torch.no_grad()
def load_weights(model: Model, source: Iterable[tuple[str, Tensor | QuantizedRows]], pack: Pack = pack) -> None:
    """Every tensor to its place, every place filled. Raises CheckpointError naming the tensor.

    pack: makes the schemes of quantized matrices, given the parts of each and the dtype of its activations.
    """
    slots = _slots(model)
    missing = dict.fromkeys(slots)
    quantized = _Quantized()
    for name, tensor in source:
        key = model.names.canonical(name)
        if key is None:
            continue
        if key not in slots:
            raise CheckpointError(
                f"tensor {shown(name)} has no place in this model; is the configuration another model's?"
            )
        if isinstance(tensor, QuantizedRows):
            quantized.add(name, slots[key], tensor)
        else:
            slots[key].fill(name, tensor)
        missing.pop(key, None)
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        names = ", ".join(repr(key) for key in list(missing)[:_SHOWN])
        raise CheckpointError(f"the checkpoint lacks {names}{more}; is a file of it missing?")
    quantized.place(pack)


def _slots(model: Model) -> dict[str, _Slot]:
    """By canonical tensor name."""
    slots: dict[str, _Slot] = {}
    for name, to in model.names.targets.items():
        numbers = range(len(model.layers)) if "{}" in name else range(1)
        for number in numbers:
            module = model.get_submodule(to.module.format(number))
            for piece, shape, write in _places(module, to.part):
                slots[f"{name.format(number)}.{piece}"] = _Slot(module, shape, write, to)
    return slots


def _places(module: nn.Module, part: str | None) -> Iterator[tuple[str, tuple[int, ...], Callable[[Tensor], object]]]:
    """Of each tensor that a checkpoint has for a part: its name, its shape, and who takes it in."""
    if isinstance(module, Linear):
        yield "weight", (module.rows_of(part), module.in_features), partial(module.fill, part)
        views = {name: view for name, view in module.slots(part).items() if name == "bias"}
    elif isinstance(module, HeadNorm):
        views = module.slots(part)
    else:
        views = dict(module.named_parameters(recurse=False))
    for name, view in views.items():
        yield name, tuple(view.shape), view.copy_


@torch.no_grad()
def dummy_weights(model: Model, seed: int = 0) -> None:
    """Random weights of sane size, the same for the same seed: activations neither vanish nor explode."""
    random = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, RMSNorm | LayerNorm | HeadNorm) and name != "bias":
                parameter.fill_(1.0)
            elif isinstance(module, Linear) and name != "bias":
                continue
            else:
                parameter.zero_()
        if isinstance(module, Linear):
            bound = (3.0 / module.in_features) ** 0.5  # variance 1 / inner size
            shape, spec = (module.out_features, module.in_features), module.specs.get("weight")
            weight = torch.empty(shape, dtype=spec.dtype if spec else torch.float32, device=random.device)
            module.fill(None, weight.uniform_(-bound, bound, generator=random))


@torch.no_grad()
def pack_coded(model: Model, dtype: torch.dtype) -> None:
    """Matrices that were brought to codes become what a CPU multiplies by. dtype: of activations."""
    for module in model.modules():
        if isinstance(module, Linear) and isinstance(module.scheme, Int4 | EightBits):
            module.adopt(module.scheme.packed(module.tensors, dtype))
