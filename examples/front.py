"""A front of accuracy against multiply-adds, and choices from it."""

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.plot import plot_front
from deap_prune.zoo import digits_resnet

data, model = load_data(format="digits"), digits_resnet(width=8)
dp.finetune(model, data.train, epochs=3, recipe=dp.Recipe(lr=0.1, batch_size=64))
images = {"calibration": data.calibration, "validation": data.validation}
front = dp.search(model, data.calibration[0], **images, population=8, generations=2).front
print(front)
print(f"best at half the cost: {front.best(max_flops=0.5)}")
print(f"knee: {front.knee()}")
print(f"cheapest with 80 %: {front.cheapest(at_least=0.8)}")
plot_front(front, "front.png")
