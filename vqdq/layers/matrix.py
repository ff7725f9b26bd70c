"""The one place where a layer's weight becomes the matrix that codecs see, and comes back.

A linear weight is already [out, in]. A convolution [out, channels, kh, kw] (channels = in / groups)
becomes [out, kh*kw*channels], channels last, so that neighbouring columns are neighbouring channels
of one tap.
"""

from __future__ import annotations

import torch
from torch import nn

from vqdq.codecs.base import WeightShape
from vqdq.errors import UserError


def kind_of(module: nn.Module) -> str | None:
    """Returns "linear" or "conv2d" for a layer that can be quantized, else None.

    Only the exact types count: a subclass may compute something else in its forward.
    """
    if type(module) is nn.Linear:
        return "linear"
    return "conv2d" if type(module) is nn.Conv2d else None


def weight_shape(module: nn.Module) -> WeightShape:
    """Returns the shape of a layer's weight as the codecs see it; works on the meta device.

    Raises:
        UserError: neither a linear layer nor a 2-d convolution.
    """
    if isinstance(module, nn.Linear):
        return WeightShape(out_features=module.out_features, in_features=module.in_features)
    if isinstance(module, nn.Conv2d):
        taps = module.kernel_size[0] * module.kernel_size[1]
        channels = module.in_channels // module.groups
        return WeightShape(out_features=module.out_channels, in_features=taps * channels, taps=taps)
    raise UserError(
        f"{type(module).__name__} has no weight that can be quantized.",
        remedy="Name a linear layer or a 2-d convolution.",
    )


def weight_matrix(module: nn.Module) -> tuple[torch.Tensor, int]:
    """Returns a layer's weight as ([out, taps*channels], taps), in its own dtype.

    Raises:
        UserError: neither a linear layer nor a 2-d convolution.
    """
    shape = weight_shape(module)
    weight = module.get_parameter("weight").detach()
    return to_matrix(weight), shape.taps


def to_matrix(weight: torch.Tensor) -> torch.Tensor:
    """Returns [out, in] as it is, or [out, channels, kh, kw] as [out, kh*kw*channels]."""
    if weight.ndim == 2:
        return weight
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)  # [out, kh*kw*channels]


def from_matrix(matrix: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """Returns a matrix in the weight's own layout; the exact inverse of `to_matrix`."""
    if not isinstance(module, nn.Conv2d):
        return matrix
    height, width = module.kernel_size
    if height * width == 1:  # turned axes of size 1 look like channels last, and inputs are copied
        return matrix.reshape(module.out_channels, -1, 1, 1)
    folded = matrix.reshape(module.out_channels, height, width, -1).permute(0, 3, 1, 2)
    if matrix.is_cuda:
        return folded  # channels last, as a card's convolutions read it: no copy
    return folded.contiguous()  # [out, channels, kh, kw]


def input_matrix(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Returns the rows x of a layer's inputs with output = x Wᵀ: [samples, taps*channels].

    For a convolution these are its patches (`unfold`) in the column order of the weight matrix;
    only groups = 1, because each group of a grouped convolution sees other rows.

    Raises:
        UserError: a grouped convolution, or no quantizable layer.
    """
    shape = weight_shape(module)
    if not isinstance(module, nn.Conv2d):
        return inputs.reshape(-1, shape.in_features)
    if module.groups != 1:
        raise UserError(
            f"a convolution with {module.groups} groups has no single input matrix.",
            remedy="Keep this layer in 16 bits or encode it without calibration.",
        )
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    border: list[int] = list(module._reversed_padding_repeated_twice)  # pyright: ignore[reportPrivateUsage]
    padded = nn.functional.pad(inputs, border, mode=mode)
    patches = nn.functional.unfold(
        padded, module.kernel_size, dilation=module.dilation, stride=module.stride
    )  # [batch, channels*taps, positions]
    batch, _, positions = patches.shape
    split = patches.reshape(batch, module.in_channels, shape.taps, positions)
    return split.permute(0, 3, 2, 1).reshape(batch * positions, shape.in_features)
