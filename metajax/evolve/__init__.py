"""Self-evolution of a language model, θ_{t+1} = f(θ_t, D_t): it poses tasks, answers them, keeps
what it can trust, learns from it, and is taken only if held-out tasks say that it isn't worse."""

from metajax.evolve.curricula import Curriculum, accelerated, most_learnable, one_harder
from metajax.evolve.data import (
    Data,
    Round,
    as_examples,
    published_shares,
    real_alone,
    real_examples,
)
from metajax.evolve.fine_tuning import fine_tune
from metajax.evolve.gates import Decision, Gate, HeldOut, always, held_out_of, joined, no_worse
from metajax.evolve.loop import evolve
from metajax.evolve.meta_step import meta_step
from metajax.evolve.policy_gradient import policy_gradient
from metajax.evolve.proposers import drawn_by_program, without_repetitions, written_by_model
from metajax.evolve.solve import solver
from metajax.evolve.state import EvolveState, Memory, Parts, RoundReport, start
from metajax.evolve.text import text_problem
from metajax.evolve.types import (
    Answers,
    Attempts,
    Examples,
    Levels,
    Problem,
    Proposer,
    Solver,
    Tasks,
    Verdict,
    Verifier,
)
from metajax.evolve.updates import Update, every_round
from metajax.evolve.verifiers import (
    all_of,
    band,
    confident,
    everything,
    exact,
    expected_length,
    is_right,
    learnable,
    majority_vote,
    most_common_length,
    must_end,
)
from metajax.evolve.views import View, in_views, renamed

__all__ = [
    "Answers",
    "Attempts",
    "Curriculum",
    "Data",
    "Decision",
    "EvolveState",
    "Examples",
    "Gate",
    "HeldOut",
    "Levels",
    "Memory",
    "Parts",
    "Problem",
    "Proposer",
    "Round",
    "RoundReport",
    "Solver",
    "Tasks",
    "Update",
    "Verdict",
    "Verifier",
    "View",
    "accelerated",
    "all_of",
    "always",
    "as_examples",
    "band",
    "confident",
    "drawn_by_program",
    "every_round",
    "everything",
    "evolve",
    "exact",
    "expected_length",
    "fine_tune",
    "held_out_of",
    "in_views",
    "is_right",
    "joined",
    "learnable",
    "majority_vote",
    "meta_step",
    "most_common_length",
    "most_learnable",
    "must_end",
    "no_worse",
    "one_harder",
    "policy_gradient",
    "published_shares",
    "real_alone",
    "real_examples",
    "renamed",
    "solver",
    "start",
    "text_problem",
    "without_repetitions",
    "written_by_model",
]
