"""A layer type of your own, described in six lines; ``dp.trace`` proves the description."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import deap_prune as dp


class Affine(nn.Module):
    """Scales and shifts every channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)
        self.offset = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return torch.addcmul(self.offset, x, self.gain)


@dp.register_layer(Affine)
def affine(layer: Affine) -> dp.LayerSpec:
    """Output channel i is input channel i; both parameters have one entry per channel."""
    return dp.LayerSpec(
        in_channels=len(layer.gain),
        out_channels=len(layer.gain),
        tensors={"gain": ("out", None, None), "offset": ("out", None, None)},
        coupled=1,
    )


def main() -> None:
    """Slim a network with the layer in it to half its filters."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 16, 3), Affine(16), nn.ReLU(), nn.Conv2d(16, 32, 3), Affine(32), nn.ReLU()]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()
    space = dp.trace(model, torch.randn(1, 3, 32, 32))
    print(space)
    masks = dp.Masks.random(space, keep=0.5)
    small = dp.slim(model, space, masks)
    outputs = small(torch.randn(2, 3, 32, 32))
    print(f"{dp.flops(space, masks):,} of {space.flops:,} multiply-adds stay; outputs {tuple(outputs.shape)}")


if __name__ == "__main__":
    main()
