"""Self-evolution of a language model, θ_{t+1} = f(θ_t, D_t).

The model proposes tasks, answers them, learns from the answers that it can trust, and is replaced
only if held-out tasks say that the new one isn't worse.
"""

from metajax.evolve.checkers import checked
from metajax.evolve.completions import chosen_completions, is_correct, rewards_of
from metajax.evolve.curricula import Curriculum, accelerated, one_harder
from metajax.evolve.data import (
    as_examples,
    labelled_examples,
    pack_mixture,
    published_mixture,
    real_examples,
    real_only,
    sampled_examples,
)
from metajax.evolve.fine_tuning import every_round, fine_tune
from metajax.evolve.gates import (
    Decision,
    Gate,
    HeldOut,
    accept_all,
    change_at_least,
    concatenate_tasks,
    held_out_fingerprints,
    held_out_tasks,
    non_inferior,
)
from metajax.evolve.grpo import grpo
from metajax.evolve.loop import evolve
from metajax.evolve.meta_step import meta_step
from metajax.evolve.proposers import (
    few_shot_proposer,
    fingerprints,
    model_proposer,
    program_proposer,
    without_duplicates,
)
from metajax.evolve.rehearsal import Rehearsal, rehearsal, rehearsed
from metajax.evolve.rejection_sampling import rejection_sampling
from metajax.evolve.served import served
from metajax.evolve.solvers import model_solver
from metajax.evolve.state import (
    EvolveConfig,
    EvolveState,
    RoundReport,
    init_state,
)
from metajax.evolve.text import encode_part, text_problem
from metajax.evolve.types import (
    Answers,
    Completions,
    Examples,
    Levels,
    Problem,
    Proposer,
    Rollouts,
    Solver,
    Tasks,
    TrainingData,
    Update,
    Verdict,
    Verifier,
)
from metajax.evolve.verifiers import (
    agreement_band,
    all_of,
    confident,
    exact_match,
    keep_all,
    learnability,
    majority_vote,
    most_common_length,
    must_end,
    uncertainty,
)
from metajax.evolve.views import View, permuted_tokens, solve_in_views

__all__ = [
    "Answers",
    "Completions",
    "Curriculum",
    "Decision",
    "EvolveConfig",
    "EvolveState",
    "Examples",
    "Gate",
    "HeldOut",
    "Levels",
    "Problem",
    "Proposer",
    "Rehearsal",
    "Rollouts",
    "RoundReport",
    "Solver",
    "Tasks",
    "TrainingData",
    "Update",
    "Verdict",
    "Verifier",
    "View",
    "accelerated",
    "accept_all",
    "agreement_band",
    "all_of",
    "as_examples",
    "change_at_least",
    "checked",
    "chosen_completions",
    "concatenate_tasks",
    "confident",
    "encode_part",
    "every_round",
    "evolve",
    "exact_match",
    "few_shot_proposer",
    "fine_tune",
    "fingerprints",
    "grpo",
    "held_out_fingerprints",
    "held_out_tasks",
    "init_state",
    "is_correct",
    "keep_all",
    "labelled_examples",
    "learnability",
    "majority_vote",
    "meta_step",
    "model_proposer",
    "model_solver",
    "most_common_length",
    "must_end",
    "non_inferior",
    "one_harder",
    "pack_mixture",
    "permuted_tokens",
    "program_proposer",
    "published_mixture",
    "real_examples",
    "real_only",
    "rehearsal",
    "rehearsed",
    "rejection_sampling",
    "rewards_of",
    "sampled_examples",
    "served",
    "solve_in_views",
    "text_problem",
    "uncertainty",
    "without_duplicates",
]
