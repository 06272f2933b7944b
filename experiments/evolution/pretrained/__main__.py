"""``python -m experiments.evolution.pretrained``."""

from experiments import common
from experiments.evolution.pretrained.train import main

if __name__ == "__main__":
    common.guard(main)
