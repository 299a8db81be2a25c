"""Fine-tuning: train a network in place, with or without a teacher."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.arguments import Count, Seed, checked
from deap_prune.data.batches import Data, Forward, Loss, default_forward, resolve_device
from deap_prune.data.devices import evaluating_on
from deap_prune.data.splits import augment as shift_and_mirror
from deap_prune.errors import ConfigError, ModelError
from deap_prune.files import check_writable
from deap_prune.progress import Shown
from deap_prune.training.recipe import Recipe
from deap_prune.training.state import EpochRecord, reset_weights, shuffled_batches
from deap_prune.training.trainer import Augment, Trainer


@checked
def finetune(
    model: nn.Module,
    train: Data,
    validation: Data | None = None,
    *,
    epochs: Count,
    recipe: Recipe | None = None,
    teacher: nn.Module | None = None,
    augment: bool | Augment = False,
    from_scratch: bool = False,
    state: str | Path | None = None,
    device: str | torch.device = "auto",
    seed: Seed = 0,
    forward: Forward | None = None,
    loss: Loss | None = None,
    progress: Shown = True,
) -> list[EpochRecord]:
    """Train a network in place; it ends with the weights of the last epoch, in eval mode, on its own device.

    With a teacher the loss is (1 - a) CE(z, y) + a T^2 KL(softmax(t / T) || softmax(z / T)). Here a is
    ``recipe.distill``, T is ``recipe.temperature``, and z and t are the logits of network and teacher (Hinton
    et al., "Distilling the Knowledge in a Neural Network", 2015). With your own loss and targets that are not
    class labels, the distillation loss is the mean squared difference of the outputs (Ba and Caruana 2014).
    On a CPU, equal seeds give equal weights. The global random state does not change.

    Args:
        model: The network. Parameters with ``requires_grad=False`` do not change; neither do the statistics of batch
            norms with a frozen weight.
        train: Float inputs (N, ...) and targets: int64 labels (N,); maps of labels (N, ...), in which negative values
            and 255 are ignored; class probabilities (N, classes, ...); or any targets that your loss takes. Two
            tensors are shuffled for each epoch into batches of nearly equal size. An iterable of batches is used as it
            is.
        validation: Data to measure loss and accuracy on after each epoch. With ``recipe.patience`` it decides when
            training stops; it decides nothing else.
        epochs: Number of passes through ``train``.
        recipe: Optimizer, schedule and distillation; default ``Recipe()``.
        teacher: A network with outputs of the same shapes; it does not change.
        augment: True for random shifts and mirror images (see :func:`deap_prune.data.augment`), or a function of
            (inputs, generator). Targets are not transformed.
        from_scratch: Reset all weights and buffers first, by each module's ``reset_parameters``.
        state: File (safetensors) that is written after every epoch. If it exists, training continues from it; on a CPU
            the result equals that of an uninterrupted training.
        device: Where to train; "auto" is CUDA if it is available, else the CPU.
        seed: Of the reset, the order of the samples, the augmentation and dropout.
        forward: Function of (model, batch) to (outputs, targets); default: ``model(inputs)``, batch (inputs, targets).
        loss: Function of (outputs, targets) to the mean over a batch, or to one value a sample, for tasks other than
            classification; default: cross-entropy.
        progress: Show a bar with the loss and accuracy of the last epoch.

    Examples:
        >>> records = dp.finetune(small, data["calibration"], epochs=2, teacher=model, progress=False)
        >>> [record.epoch for record in records], small.training
        ([1, 2], False)

    Returns:
        One record an epoch.

    Raises:
        DataError: If there is no batch, targets do not fit the inputs or the network, or the device does not exist.
        ModelError: If no parameter can be trained or reset, the teacher does not fit, or the loss is not finite.
        ConfigError: If the epochs or the validation data do not fit the recipe.
        RunError: If ``state`` belongs to a training with other settings. Functions are compared by name.
    """
    recipe = recipe or Recipe()
    if epochs < 1 or recipe.warmup_epochs >= epochs:
        raise ConfigError(
            f"epochs={epochs} with warmup_epochs={recipe.warmup_epochs}; give at least 1 epoch, "
            "and more epochs than the warm-up takes"
        )
    if recipe.patience is not None and validation is None:
        raise ConfigError(f"patience={recipe.patience} needs the validation accuracy (or loss); give validation data")
    if teacher is model:
        raise ModelError("the teacher is the network itself; give the dense one (copy.deepcopy before pruning)")
    for name, network in (("network", model), ("teacher", teacher)):
        if network is not None and any(parameter.is_meta for parameter in network.parameters()):
            raise ModelError(f"the {name} has weights on the meta device, without values; load them first")
    if state is not None:
        check_writable(Path(state))
    device = resolve_device(device)
    generator = torch.Generator().manual_seed(seed)
    transform = shift_and_mirror if augment is True else augment or None
    trainer = Trainer(model, teacher, recipe, epochs, forward or default_forward, transform, device, generator, loss)
    cuda = [device] if device.type == "cuda" else []
    with_teacher = evaluating_on(device, teacher) if teacher is not None else nullcontext()
    with torch.random.fork_rng(cuda), evaluating_on(device, model, restore_modes=False), with_teacher:
        torch.manual_seed(seed)
        if from_scratch:
            reset_weights(model)
        settings = {**asdict(recipe), "epochs": epochs, "seed": seed, "from_scratch": from_scratch}
        settings |= {"teacher": teacher is not None, "augment": transform is not None}
        settings |= {"loss": None if loss is None else _describe(loss)}
        batches = shuffled_batches(train, recipe.batch_size, generator, device)
        saved = None if state is None else (Path(state), settings)
        return trainer.run(batches, validation, saved, progress)


def _describe(value: Any) -> str:
    """A loss as text that is the same in every process: its name, and the options of a module or partial function."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {float(value.double().sum())}"
    options: dict[str, Any] = {}
    if isinstance(value, partial):
        options = {**{str(position): argument for position, argument in enumerate(value.args)}, **value.keywords}
    elif isinstance(value, nn.Module):
        attributes = {name: attribute for name, attribute in vars(value).items() if not name.startswith("_")}
        options = {**attributes, **dict(value.named_buffers())}
    function = value.func if isinstance(value, partial) else value
    nested = isinstance(function, partial)
    name = _describe(function) if nested else getattr(function, "__qualname__", type(function).__qualname__)
    text = ", ".join(f"{key}={_describe(option)}" for key, option in options.items())
    return f"{name}({text})" if options else name
