"""python -m experiments.fewshot.cifar."""

from experiments import common
from experiments.fewshot.cifar.train import main

common.guard(main)
