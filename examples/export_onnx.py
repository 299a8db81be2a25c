"""A pruned network as ONNX, checked against the network, and timed (needs the extra onnx)."""

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet

data, model = load_data(format="digits"), digits_resnet(width=8)
dp.finetune(model, data.train, epochs=3, recipe=dp.Recipe(lr=0.1, batch_size=64))
images = {"calibration": data.calibration, "validation": data.validation}
result = dp.search(model, data.calibration[0], **images, population=8, generations=1, finalists=1)
small = result.slim(result.front.best(max_flops=0.5))
print(dp.export(small, data.validation[0][:8], "runs/onnx", formats=("onnx",), dense=model))
