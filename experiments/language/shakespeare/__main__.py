"""``python -m experiments.language.shakespeare``."""

from experiments import common
from experiments.language.shakespeare.train import main

common.guard(main)
