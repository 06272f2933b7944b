"""python -m experiments.fewshot.cifar."""

from experiments import common
from experiments.fewshot.cifar.comparison import main

common.guard(main)
