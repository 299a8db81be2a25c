"""Other tools: a blend as the importance of Torch-Pruning's pruners, a genome as an objective of Optuna."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.arguments import checked
from deap_prune.blending.decoding import Decoding
from deap_prune.errors import ConfigError, MaskError
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.structure.layers import spec_of
from deap_prune.structure.slim import check_network, unwrap


class BlendedImportance:
    """The importance of a blend, in the form that the pruners of Torch-Pruning (1.5 or newer) accept.

    A group of Torch-Pruning gets the blended scores of its filters, or their mean where it couples filters that
    ``trace`` keeps separate. A group with filters that ``trace`` refused has no scores, and the pruner does not change
    it.

    Examples:
        >>> import torch_pruning as tp
        >>> importance = dp.BlendedImportance(model, genome, genome.single("l2"))
        >>> pruner = tp.pruner.BasePruner(model, images[:1], importance, pruning_ratio=0.5, ignored_layers=[model[-1]])
        >>> pruner.step()
        >>> model[3]
        Conv2d(4, 3, kernel_size=(3, 3), stride=(1, 1))

    Args:
        model: The network that was traced; the pruner must prune the same object.
        genome: The genome of the individual.
        individual: Genes of a blend; keep genes are ignored, because the pruner chooses the widths.

    Raises:
        ConfigError: If torch-pruning is not installed, or the individual does not belong to the genome.
        MaskError: If the genome's space belongs to another network.
    """

    @checked
    def __init__(self, model: nn.Module, genome: Decoding, individual: Sequence[float]) -> None:
        try:
            from torch_pruning import pruner
        except ImportError as error:
            raise ConfigError("BlendedImportance needs the package torch-pruning: pip install torch-pruning") from error
        network, blended = unwrap(model), genome.importance(individual)
        check_network(network, genome.space)
        names = ("prune_conv_out_channels", "prune_linear_out_channels", "prune_depthwise_conv_out_channels")
        self._filter_functions = [getattr(pruner.function, name) for name in names]
        self._scores: dict[nn.Module, Tensor] = {}
        for group in genome.space.groups:
            for member in group.layers("filter"):
                layer = network.get_submodule(member.layer)
                unknown = torch.full((spec_of(layer).out_channels,), torch.nan, dtype=torch.float64)
                scores = self._scores.setdefault(layer, unknown)
                scores[torch.as_tensor(member.positions)] = torch.as_tensor(blended[group.name]).unsqueeze(1)

    def __call__(self, group: Any) -> Tensor | None:
        """Scores of the channels of a Torch-Pruning group, shape (channels,); None if a channel has no score.

        Raises:
            MaskError: If a layer was pruned after it was scored.
        """
        total = torch.zeros(len(group[0].idxs), dtype=torch.float64)
        count = torch.zeros_like(total)
        for item in group:
            layer = item.dep.target.module
            if layer not in self._scores or item.dep.handler not in self._filter_functions:
                continue
            width, scored = spec_of(layer).out_channels, len(self._scores[layer])
            if width != scored:
                raise MaskError(
                    f"'{item.dep.target.name}' has {width} filters, {scored} when it was scored: prune in one step "
                    "(iterative_steps=1), or score the pruned network for the next step"
                )
            places = torch.as_tensor(item.root_idxs)
            total.index_add_(0, places, self._scores[layer][torch.as_tensor(item.idxs)])
            count.index_add_(0, places, torch.ones(len(places), dtype=torch.float64))
        scores = total / count  # NaN for channels without a score
        return None if bool(scores.isnan().any()) else scores.float()


@checked
def optuna_objective(genome: Decoding, evaluate: Evaluator) -> Callable[[Any], float | tuple[float, ...]]:
    """The objective of an Optuna study whose parameters are the genes of a genome.

    Each trial stores its genes: ``genome.decode(trial.user_attrs["individual"])`` gives its masks. The study needs one
    direction an objective: "maximize" where ``evaluate.weights`` is positive, else "minimize".

    Args:
        genome: Decodes the genes to masks, inside its budget.
        evaluate: The fitness of masks.

    Returns:
        Function of an ``optuna.Trial`` to the value, or to a tuple of values if there are several objectives.

    Raises:
        ConfigError: If genome and evaluator belong to different networks.

    Examples:
        >>> objective = dp.optuna_objective(genome, evaluate)  # study.optimize(objective, n_trials=100)
    """
    if genome.space is not evaluate.space:
        raise ConfigError("genome and evaluate have different spaces; make both from the result of one dp.trace")
    layout = genome.layout
    groups = [group.name for group in genome.space.groups]

    def objective(trial: Any) -> float | tuple[float, ...]:
        genes: list[float] = []
        if not hasattr(trial, "suggest_float"):
            raise ConfigError(f"the trial is a {type(trial).__name__}; give the objective to study.optimize")
        for place, (kind, low, high, locus) in enumerate(
            zip(layout.kinds, layout.low, layout.high, layout.loci, strict=True)
        ):
            name = f"{place:04d} {kind}" if locus < 0 else f"{place:04d} {kind} {groups[locus]}"
            if kind == "candidate":
                genes.append(trial.suggest_int(name, int(low), int(high)))
            else:
                genes.append(trial.suggest_float(name, low, high))
        trial.set_user_attr("individual", genes)
        values = evaluate(genome.decode(genes))
        return values[0] if len(values) == 1 else tuple(values)

    return objective
