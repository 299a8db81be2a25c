"""Training a network in place, with or without a teacher."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.data.batches import Data, Forward, Loss, default_forward, resolve_device
from deap_prune.data.splits import augment as shift_and_mirror
from deap_prune.errors import ConfigError, ModelError
from deap_prune.training.evaluation import placed
from deap_prune.training.recipe import Recipe
from deap_prune.training.state import EpochRecord, reset, shuffled
from deap_prune.training.trainer import Augment, Trainer


def finetune(
    model: nn.Module,
    train: Data,
    validation: Data | None = None,
    *,
    epochs: int,
    recipe: Recipe | None = None,
    teacher: nn.Module | None = None,
    augment: bool | Augment = False,
    from_scratch: bool = False,
    state: str | Path | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    forward: Forward | None = None,
    loss: Loss | None = None,
    progress: bool = True,
) -> list[EpochRecord]:
    """Train a network in place; it ends with the weights of the last epoch, in eval mode, on its own device.

    With a teacher the loss is (1 - a) CE(z, y) + a T^2 KL(softmax(t / T) || softmax(z / T)), where a is
    ``recipe.distill``, T is ``recipe.temperature`` and z and t are the logits of network and teacher (Hinton
    et al., "Distilling the Knowledge in a Neural Network", 2015). With a loss of your own and targets that are no
    class labels the teacher's part is the mean squared difference of the outputs (Ba and Caruana 2014).
    On a CPU a seed gives equal weights again; the global random state is left as it was.

    Args:
        model: The network; parameters with ``requires_grad=False`` stay as they are, and statistics of frozen norms.
        train: Float inputs (N, ...) and int64 targets (N,), or (N, ...) for maps of labels (below 0, and 255, are left
            out), or shares of classes (N, classes, ...), or what your loss takes. Two tensors are shuffled anew for
            each epoch into batches of nearly equal size.
        validation: What to measure loss and accuracy on after each epoch. It decides nothing but when to stop, and that
            only with ``recipe.patience``.
        epochs: How often to go through ``train``.
        recipe: Optimizer, schedule and distillation; default ``Recipe()``.
        teacher: A network with the same outputs, left unchanged.
        augment: True for random shifts and mirror images (see deap_prune.data.augment), or a function of
            inputs and generator. Targets are not changed with them.
        from_scratch: First reset all weights and buffers by each module's ``reset_parameters``.
        state: File (safetensors) to keep after every epoch; if it is there, training goes on from it, on a CPU as if
            it had never stopped.
        device: Where to train; "auto" is CUDA where there is any, else the CPU.
        seed: Of the resetting, the order, the augmentation and dropout.
        forward: Model and batch to (outputs, targets); default: ``model(inputs)``, batch (inputs, targets).
        loss: For other tasks than classification: function of (outputs, targets) to the mean over a batch, or to one
            value a sample; cross-entropy if left out.
        progress: Show a bar with the figures of the last epoch.

    Examples:
        >>> records = dp.finetune(small, data["calibration"], epochs=2, teacher=model, progress=False)
        >>> [record.epoch for record in records], small.training
        ([1, 2], False)

    Returns:
        One record for each epoch.

    Raises:
        DataError: If there is no batch, targets do not fit to inputs or network, or there is no such device.
        ModelError: If nothing can be trained or reset, the teacher does not fit, or the loss is not finite.
        ConfigError: If the epochs or the validation data do not fit the recipe.
        RunError: If ``state`` is of another training; of functions the names are compared.
    """
    recipe = recipe or Recipe()
    if epochs < 1 or recipe.warmup_epochs >= epochs:
        raise ConfigError(
            f"epochs={epochs} with warmup_epochs={recipe.warmup_epochs}; give at least 1 epoch, "
            "and more than the warm-up takes"
        )
    if recipe.patience is not None and validation is None:
        raise ConfigError(f"patience={recipe.patience} follows the validation accuracy (or loss); give validation data")
    if teacher is model:
        raise ModelError("the teacher is the network itself; give the unpruned one (copy.deepcopy before pruning)")
    place = resolve_device(device)
    generator = torch.Generator().manual_seed(seed)
    change = shift_and_mirror if augment is True else augment or None
    trainer = Trainer(model, teacher, recipe, epochs, forward or default_forward, change, place, generator, loss)
    cuda = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(cuda), placed(place, model, keep_modes=False), placed(place, teacher):
        torch.manual_seed(seed)
        if from_scratch:
            reset(model)
        settings = {**asdict(recipe), "epochs": epochs, "seed": seed, "from_scratch": from_scratch}
        settings |= {"teacher": teacher is not None, "augment": change is not None}
        settings |= {"loss": None if loss is None else _told(loss)}
        kept = None if state is None else (Path(state), settings)
        return trainer.run(shuffled(train, recipe.batch_size, generator, place), validation, kept, progress)


def _told(value: Any) -> str:
    """A loss in words that are the same in every process: names, and the options of modules and partials."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {float(value.double().sum())}"
    options: dict[str, Any] = {}
    if isinstance(value, partial):
        options = {**{str(place): each for place, each in enumerate(value.args)}, **value.keywords}
    elif isinstance(value, nn.Module):
        plain = {name: each for name, each in vars(value).items() if not name.startswith("_")}
        options = {**plain, **dict(value.named_buffers())}
    of = value.func if isinstance(value, partial) else value
    name = _told(of) if isinstance(of, partial) else getattr(of, "__qualname__", type(of).__qualname__)
    return f"{name}({', '.join(f'{key}={_told(each)}' for key, each in options.items())})" if options else name
