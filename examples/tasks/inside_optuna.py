"""Optuna searches the genome: its samplers, storage and dashboard instead of DEAP."""

import optuna
from torch import nn

import deap_prune as dp
from deap_prune.data import load_data

data = load_data(format="digits")
model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
dp.finetune(model, data.train, epochs=2, recipe=dp.Recipe(lr=0.05, batch_size=64))

space = dp.trace(model, data.calibration[0][:1])
scores = dp.score(model, space, data.calibration, criteria=("l1", "fpgm", "taylor_gate"))
genome = dp.Genome(space, scores, dp.cluster(scores, n_clusters=2), allocation="evolved")
evaluate = dp.Evaluator(model, space, calibration=data.calibration, validation=data.validation)

study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.NSGAIISampler(seed=0))
study.optimize(dp.optuna_objective(genome, evaluate), n_trials=20)  # objectives: accuracy, flops
for trial in study.best_trials:
    print(f"trial {trial.number}: accuracy {trial.values[0]:.3f}, flops {trial.values[1]:.3f}")
small = evaluate.slim(genome.decode(study.best_trials[0].user_attrs["individual"]))
