"""Which layers of a denoiser see the same input, and how many fit into memory at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from vqdq.capture.moments import Moments
from vqdq.errors import UserError
from vqdq.layers.matrix import kind_of, weight_shape
from vqdq.models.trajectory import Call, replay
from vqdq.quantities import size


@dataclass(frozen=True, kw_only=True, slots=True)
class InputGroup:
    """Layers that multiply the same rows, so that one Hessian serves them all.

    Attributes:
        layers: names in the order of execution; the first one names the group.
        kind: "linear" or "conv2d".
        in_features: columns, taps * channels; `taps` of a convolution, else 1.
        uses: times that the input comes in one call; above 1 only for a layer used again.
        argument: which argument of the denoiser the input is ("encoder_hidden_states"), if any:
            such an input is the same for all steps.
    """

    layers: tuple[str, ...]
    kind: str
    in_features: int
    taps: int = 1
    uses: int = 1
    argument: str | None = None

    @property
    def name(self) -> str:
        """The first layer's name."""
        return self.layers[0]

    @property
    def bytes(self) -> int:
        """Memory for the statistics while they are collected."""
        return Moments.bytes(self.in_features)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wave:
    """Groups that are collected in one pass over the calls; `bytes` is what they need together."""

    groups: tuple[InputGroup, ...]

    @property
    def bytes(self) -> int:
        """Memory for the statistics of all groups."""
        return sum(group.bytes for group in self.groups)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all layers."""
        return tuple(name for group in self.groups for name in group.layers)


def input_groups(module: nn.Module, calls: Sequence[Call]) -> tuple[InputGroup, ...]:
    """Returns the groups of a denoiser's layers, in the order in which one call runs them.

    Two layers share a group when they are given the same tensor object, unchanged in between, and,
    for convolutions, cut the same patches out of it. Found by making `calls[0]` again. Grouped
    convolutions and layers that the call does not run are in no group: they get no statistics, and
    codecs encode them from the weight alone.
    """
    seen = _Seen(arguments(calls[0]))
    with watching(module, candidate_layers(module), seen.see), torch.no_grad():
        replay(module, calls[0])
    return seen.groups()


def plan_waves(groups: Iterable[InputGroup], memory_bytes: int) -> tuple[Wave, ...]:
    """Returns the groups in waves whose statistics fit into `memory_bytes`, in their order.

    Raises:
        UserError: one group alone needs more; its first layer and the need are named.
    """
    waves: list[list[InputGroup]] = []
    used = 0
    for group in groups:
        if group.bytes > memory_bytes:
            raise UserError(
                f"the second moments of its {group.in_features:,} inputs take "
                f"{group.bytes / 1e9:.2f} GB, {memory_bytes / 1e9:.2f} GB are allowed.",
                where=group.name,
                remedy=f"Set the memory for statistics to {group.bytes / 1e9 + 0.005:.2f} GB or "
                "more, or give this layer a method that works without calibration.",
            )
        if not waves or used + group.bytes > memory_bytes:
            waves.append([])
            used = 0
        waves[-1].append(group)
        used += group.bytes
    return tuple(Wave(groups=tuple(wave)) for wave in waves)


def waves_in_words(waves: Sequence[Wave]) -> str:
    """Returns the plan as a sentence: "2 passes, at most 3.9 GB of statistics"."""
    most = max((wave.bytes for wave in waves), default=0)
    passes = "1 pass" if len(waves) == 1 else f"{len(waves)} passes"
    return f"{passes}, at most {size(most)} of statistics"


def candidate_layers(module: nn.Module) -> tuple[str, ...]:
    """Returns the names of the layers that have one input matrix."""
    return tuple(
        name
        for name, layer in module.named_modules()
        if kind_of(layer) is not None and getattr(layer, "groups", 1) == 1
    )


def arguments(call: Call) -> dict[str, torch.Tensor]:
    """Returns the tensors that the denoiser is called with, by name or position."""
    found: dict[str, torch.Tensor] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[path] = value
        elif isinstance(value, Mapping):
            for key, item in cast(Mapping[str, Any], value).items():
                walk(f"{path}.{key}" if path else key, item)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(cast(Sequence[Any], value)):
                walk(f"{path}.{index}" if path else str(index), item)

    walk("", call.args)
    walk("", call.kwargs)
    return found


@contextmanager
def watching(
    module: nn.Module,
    names: Iterable[str],
    see: Callable[[str, nn.Module, torch.Tensor], None],
) -> Generator[None, None, None]:
    """Calls `see(name, layer, input)` before each use of the named layers, until the block ends."""

    def hook_of(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(name, layer, args[0] if args else kwargs["input"])

        return hook

    handles = [
        module.get_submodule(name).register_forward_pre_hook(hook_of(name), with_kwargs=True)
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Seen:
    """Sorts layers by the identity of their inputs, without keeping any input alive."""

    def __init__(self, known: Mapping[str, torch.Tensor]) -> None:
        self._arguments = {id(tensor): name for name, tensor in known.items()}
        self._places: dict[tuple[Any, ...], tuple[weakref.ref[torch.Tensor], int]] = {}
        self._inputs: dict[str, list[int]] = {}  # layer -> numbers of the inputs it was given
        self._layers: dict[str, nn.Module] = {}
        self._argument: dict[int, str | None] = {}

    def see(self, name: str, layer: nn.Module, inputs: torch.Tensor) -> None:
        cut = ()
        if isinstance(layer, nn.Conv2d):
            shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            cut = (*shape, layer.padding_mode)
        key = (id(inputs), inputs._version, *cut)  # pyright: ignore[reportPrivateUsage]
        place = self._places.get(key)
        if place is None or place[0]() is not inputs:  # an id comes again when its tensor is gone
            number = len(self._argument)
            self._places[key] = (weakref.ref(inputs), number)
            self._argument[number] = self._arguments.get(id(inputs))
        else:
            number = place[1]
        self._inputs.setdefault(name, []).append(number)
        self._layers[name] = layer

    def groups(self) -> tuple[InputGroup, ...]:
        members: dict[tuple[int, ...], list[str]] = {}
        for name, numbers in self._inputs.items():
            members.setdefault(tuple(numbers), []).append(name)
        return tuple(self._group(names, numbers) for numbers, names in members.items())

    def _group(self, names: list[str], numbers: tuple[int, ...]) -> InputGroup:
        layer = self._layers[names[0]]
        shape = weight_shape(layer)
        kind = kind_of(layer)
        assert kind is not None
        return InputGroup(
            layers=tuple(names),
            kind=kind,
            in_features=shape.in_features,
            taps=shape.taps,
            uses=len(numbers),
            argument=self._argument[numbers[0]] if len(numbers) == 1 else None,
        )
