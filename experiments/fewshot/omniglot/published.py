"""The papers' figures on Omniglot: accuracy in % by ``(n_way, k_shot)``, each with its source."""

from experiments.fewshot.comparing import UNCHECKED

Figures = dict[str, tuple[str, dict[tuple[int, int], str]]]

TITLES = {
    "maml": "MAML",
    "fomaml": "First-order MAML",
    "reptile": "Reptile",
    "anil": "ANIL",
    "maml++": "MAML++",
    "imaml": "iMAML",
}
BY_GRADIENTS: Figures = {
    "maml": (
        "Finn et al. 2017, table 1",
        {(5, 1): "98.7 ± 0.4", (5, 5): "99.9 ± 0.1", (20, 1): "95.8 ± 0.3", (20, 5): "98.9 ± 0.2"},
    ),
    "fomaml": (
        "Nichol et al. 2018",
        {(5, 1): "98.3 ± 0.5", (5, 5): "99.2 ± 0.2", (20, 1): "89.4 ± 0.5", (20, 5): "97.9 ± 0.1"},
    ),
    "reptile": (
        "Nichol et al. 2018",
        {
            (5, 1): "97.68 ± 0.04",
            (5, 5): "99.48 ± 0.06",
            (20, 1): "89.43 ± 0.14",
            (20, 5): "97.12 ± 0.32",
        },
    ),
    "anil": (
        "Raghu et al. 2020",
        {(20, 1): "96.2 ± 0.5" + UNCHECKED, (20, 5): "98.0 ± 0.3" + UNCHECKED},
    ),
    "maml++": (
        "Antoniou et al. 2019, an ensemble of 5 checkpoints",
        {(5, 1): "99.47", (5, 5): "99.85", (20, 1): "97.65 ± 0.05", (20, 5): "99.33 ± 0.03"},
    ),
    "imaml": (
        "Rajeswaran et al. 2019, table 2, gradient descent",
        {
            (5, 1): "99.16 ± 0.35",
            (5, 5): "99.67 ± 0.12",
            (20, 1): "94.46 ± 0.42",
            (20, 5): "98.69 ± 0.10",
        },
    ),
}
"""All transductive."""

BY_COMPARISON: Figures = {
    "prototypical": (
        "Snell et al. 2017, table 1",
        {(5, 1): "98.8", (5, 5): "99.7", (20, 1): "96.0", (20, 5): "98.9"},
    ),
    "matching": (
        "Vinyals et al. 2016, table 1",
        {(5, 1): "98.1", (5, 5): "98.9", (20, 1): "93.8", (20, 5): "98.5"},
    ),
    "relation": (
        "Sung et al. 2018",
        {
            (5, 1): "99.6" + UNCHECKED,
            (5, 5): "99.8" + UNCHECKED,
            (20, 1): "97.6" + UNCHECKED,
            (20, 5): "99.1" + UNCHECKED,
        },
    ),
    "r2d2": (
        "Bertinetto et al. 2019",
        {
            (5, 1): "98.91" + UNCHECKED,
            (5, 5): "99.74" + UNCHECKED,
            (20, 1): "96.2" + UNCHECKED,
            (20, 5): "99.2" + UNCHECKED,
        },
    ),
}
"""Not transductive."""

LAKE: Figures = {
    "prototypical": ("Lake et al. 2019; people 95.5, BPL 96.7", {(20, 1): "86.3" + UNCHECKED}),
}
"""Within an alphabet of the evaluation set, trained on the background set; not transductive."""
NOTHING: tuple[str, dict[tuple[int, int], str]] = ("no figure is known", {})
