"""Prune, then quantise: a pruned network in eight bits, beside fp32 and the dense network (needs the extra onnx)."""

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.int8 import export_int8
from deap_prune.zoo import digits_resnet

data, model = load_data(format="digits"), digits_resnet(width=8)
dp.finetune(model, data.train, epochs=3, recipe=dp.Recipe(lr=0.1, batch_size=64))
images = {"calibration": data.calibration, "validation": data.validation}
result = dp.search(model, data.calibration[0], **images, population=8, generations=1, finalists=1)
small = result.slim(result.front.best(max_flops=0.5))
print(export_int8(small, data.test[0][:2], "runs/int8", calibration=data.calibration, test=data.test, dense=model))
