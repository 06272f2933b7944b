"""``python -m experiments.evolution.stories``."""

from experiments import common
from experiments.evolution.stories.train import main

if __name__ == "__main__":
    common.guard(main)
