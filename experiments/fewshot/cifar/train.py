"""Few-shot learners on CIFAR-FS and FC100, beside the papers' numbers.

python -m experiments.fewshot.cifar trains Prototypical Networks with the four-layer network on
5-way 1-shot tasks of CIFAR-FS: training images are cropped after a border of four pixels, mirrored
and changed in colour, on the device, as published; Muon with warm-up and cosine decay is ours. The
model is tested on 5-way tasks with 15 query images a class, with running statistics: no query image
sees another one.

--data-set fc100 takes FC100, --body resnet12 the larger network, --k-shot the shots of training and
test, and --method another learner: r2d2 or metaoptnet; maml, fomaml, anil, maml++ or proto-maml,
which are tested transductive, as published, and not; or linear-probe, which classifies all training
classes first.
"""

from collections.abc import Sequence
from typing import get_args

import metajax
from experiments import common
from experiments.fewshot.cifar import adaptation, comparison, pretraining
from experiments.fewshot.cifar.config import Adapting, Config, preset


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, evaluates, and leaves everything in the run folder."""
    metajax.use_every_core()
    config = common.parse(Config, arguments, __doc__ or "", preset=preset)
    name = f"{config.data_set}-{config.body}-{config.method}-{config.k_shot}shot"
    run = common.open_run(name, config)
    command = common.command("experiments.fewshot.cifar", config, preset=preset)
    if config.method in get_args(Adapting):
        make = adaptation.train_and_test
    elif config.method == "linear-probe":
        make = pretraining.train_and_test
    else:
        make = comparison.train_and_test
    table = make(run, config, command=command)
    common.finish(run.path, table, then="make cifar-fs has all learners in one table.")
