# %% [markdown]
# # Prune a network in a notebook
# Jupyter, VS Code and Colab run each cell by itself. In Colab, `%pip install deap-prune` comes first.

# %%
from torch import nn

import deap_prune as dp
from deap_prune.data import load_data

data = load_data(format="digits")
model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
dp.finetune(model, data.train, epochs=2, recipe=dp.Recipe(lr=0.05, batch_size=64))

# %%
space = dp.trace(model, data.calibration[0][:1])
space  # a short table; print(space) shows everything

# %%
images = {"calibration": data.calibration, "validation": data.validation}
options = {"criteria": ("l1", "fpgm", "taylor_gate"), "population": 8, "generations": 1, "finalists": 0}
result = dp.search(model, data.calibration[0][:1], **images, **options)
result  # the front as a table

# %%
result.plot()  # the front over all candidates

# %%
rows = result.front.to_frame()  # a DataFrame if pandas is there, else a list of dicts
small = result.slim(result.front.best(max_flops=0.5))
print(
    f"{dp.accuracy(small, data.test):.3f} of the test images, {sum(p.numel() for p in small.parameters()):,} parameters"
)
