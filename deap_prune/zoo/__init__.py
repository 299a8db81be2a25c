"""Small networks to prune: CIFAR ResNets and VGGs, and networks for the 8x8 digits as images and as point sets.

Two of their layers are examples of ``register_layer``: ``AdaptivePolyphase`` (shift-invariant downsampling) and
``ContinuousConv`` (convolution on point sets).
"""

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
from deap_prune.zoo.continuous import ContinuousConv, PointClassifier, brightest_points
from deap_prune.zoo.digits import digits_resnet, trained_digits_resnet
from deap_prune.zoo.polyphase import AdaptivePolyphase

__all__ = [
    "AdaptivePolyphase",
    "BasicBlock",
    "CifarResNet",
    "CifarVGG",
    "ContinuousConv",
    "PadShortcut",
    "PointClassifier",
    "brightest_points",
    "cifar10_resnet20",
    "cifar10_resnet56",
    "cifar100_resnet20",
    "cifar100_resnet56",
    "cifar_resnet",
    "digits_resnet",
    "resnet20",
    "resnet56",
    "trained_digits_resnet",
    "vgg16",
    "vgg19",
]
