"""``python -m experiments.evolution.knowledge``."""

from experiments import common
from experiments.evolution.knowledge.train import main

if __name__ == "__main__":
    common.guard(main)
