"""Continue a stopped search, bit for bit as if it had never stopped, and for more generations than it began with."""

import shutil

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet

data, model = load_data(format="digits"), digits_resnet(width=8)
dp.finetune(model, data.train, epochs=3, recipe=dp.Recipe(lr=0.1, batch_size=64))
shutil.rmtree("runs/resume", ignore_errors=True)  # a search needs a new folder
images = {"calibration": data.calibration, "validation": data.validation}
first = dp.search(model, data.calibration[0], **images, population=8, generations=1, finalists=1, out="runs/resume")
longer = dp.resume("runs/resume", model, data.calibration[0], **images, generations=3)
print(f"{first.evaluations} evaluations, then {longer.evaluations}")
print(longer.front)
