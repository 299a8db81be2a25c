"""Small networks to prune: CIFAR ResNets and VGGs, and a residual network for the 8x8 digits."""

from __future__ import annotations

from deap_prune.zoo.cifar_resnet import (
    BasicBlock,
    CifarResNet,
    PadShortcut,
    cifar10_resnet20,
    cifar10_resnet56,
    cifar100_resnet20,
    cifar100_resnet56,
    cifar_resnet,
    resnet20,
    resnet56,
)
from deap_prune.zoo.cifar_vgg import CifarVGG, vgg16, vgg19
from deap_prune.zoo.digits import digits_resnet

__all__ = [
    "BasicBlock",
    "CifarResNet",
    "CifarVGG",
    "PadShortcut",
    "cifar10_resnet20",
    "cifar10_resnet56",
    "cifar100_resnet20",
    "cifar100_resnet56",
    "cifar_resnet",
    "digits_resnet",
    "resnet20",
    "resnet56",
    "vgg16",
    "vgg19",
]
