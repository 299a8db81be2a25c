"""A residual network for scikit-learn's 8x8 digits, which need no download."""

from __future__ import annotations

from pathlib import Path

from deap_prune.zoo.cifar_resnet import CifarResNet


def digits_resnet(num_classes: int = 10, width: int = 16, *, shift_invariant: bool = False) -> CifarResNet:
    """A residual network of 14 layers for one-channel 8x8 images (after He et al. 2016, section 4.2).

    Three stages of two basic blocks with ``width``, ``2 * width`` and ``4 * width`` channels, on 8x8, 4x4 and 2x2
    pixels, with 1x1-convolution shortcuts.

    Args:
        num_classes: Number of classes.
        width: Channels of the first stage.
        shift_invariant: Use circular padding, and adaptive polyphase sampling instead of strides; see CifarResNet.

    Returns:
        The network with random weights, for inputs (N, 1, 8, 8).

    Raises:
        ModelError: If an argument is not positive.
    """
    widths = (width, 2 * width, 4 * width)
    return CifarResNet(2, num_classes, widths=widths, in_channels=1, shift_invariant=shift_invariant)


def trained_digits_resnet(
    cache: str = ".cache/digits_resnet.safetensors", epochs: int = 15, width: int = 16
) -> CifarResNet:
    """The digits network, trained on the digits; its weights are read from a file, which the first call writes.

    Training takes about half a minute on a CPU. It is seeded and leaves torch's global generators as they were.

    Args:
        cache: The weights file.
        epochs: Passes over the training images.
        width: Channels of the first stage.

    Returns:
        The trained network, in eval mode.

    Raises:
        ModelError: If the file holds other weights.
    """
    import torch

    from deap_prune.data import load_data
    from deap_prune.training import Recipe, finetune
    from deap_prune.weights import load_weights, save_weights

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = digits_resnet(width=width)
        if Path(cache).is_file():
            load_weights(model, cache)
        else:
            data = load_data(format="digits")
            recipe = Recipe(lr=0.1, batch_size=64)
            finetune(model, data.train, data.validation, epochs=epochs, recipe=recipe, progress=False)
            save_weights(model, cache)
    return model.eval()
