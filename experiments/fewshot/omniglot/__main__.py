"""``python -m experiments.fewshot.omniglot``."""

from experiments import common
from experiments.fewshot.omniglot.train import main

common.guard(main)
