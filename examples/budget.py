"""The best network with half the multiply-adds."""

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet

data, model = load_data(format="digits"), digits_resnet(width=8)
dp.finetune(model, data.train, epochs=3, recipe=dp.Recipe(lr=0.1, batch_size=64))
images = {"calibration": data.calibration, "validation": data.validation}
options = {"objectives": ("loss",), "max_flops": 0.5, "population": 8, "generations": 2}
result = dp.search(model, data.calibration[0], **images, **options)
small = result.slim(result.best)
print(f"{result.best.flops / result.space.flops:.3f} of the multiply-adds: {result.best}")
print(f"{dp.accuracy(model, data.test):.4f} dense, {dp.accuracy(small, data.test):.4f} pruned (test images)")
