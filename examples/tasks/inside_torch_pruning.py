"""Torch-Pruning decides the widths, and an evolved blend ranks the filters."""

import torch_pruning as tp
from torch import nn

import deap_prune as dp
from deap_prune.data import load_data

data = load_data(format="digits")
model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
dp.finetune(model, data.train, epochs=2, recipe=dp.Recipe(lr=0.05, batch_size=64))
image = data.calibration[0][:1]

images = {"calibration": data.calibration, "validation": data.validation}
options = {"criteria": ("l1", "fpgm", "taylor_gate"), "objectives": ("loss",), "max_flops": 0.5, "finalists": 0}
result = dp.search(model, image, **images, **options, allocation="uniform", population=8, generations=1)

importance = dp.BlendedImportance(model, result.genome, result.best.individual)
pruner = tp.pruner.BasePruner(model, image, importance, pruning_ratio=0.3, ignored_layers=[model[5]])
pruner.step()  # prunes model in place
print(model)
print(f"{dp.accuracy(model, data.test):.3f} of the test images, before fine-tuning")
