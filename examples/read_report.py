"""A run as one page: the front to click, heat maps, costs (needs the extra report)."""

import shutil

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet

data, model = load_data(format="digits"), digits_resnet(width=8)
dp.finetune(model, data.train, epochs=3, recipe=dp.Recipe(lr=0.1, batch_size=64))
shutil.rmtree("runs/report", ignore_errors=True)  # a search needs a new folder
images = {"calibration": data.calibration, "validation": data.validation}
result = dp.search(model, data.calibration[0], **images, population=8, generations=2, finalists=1, out="runs/report")
page = dp.report("runs/report", result=result, singles=2)
print(f"open {page.resolve().as_uri()}")
