"""A small, typed, total task language in which a model can invent."""

from experiments.evolution.programs.language.behaviour import (
    fingerprints,
    held_out_programs,
    is_degenerate,
    is_held_out,
    outputs_on_probes,
)
from experiments.evolution.programs.language.checking import (
    check_abduction,
    check_deduction,
    check_induction,
    parse_proposals,
)
from experiments.evolution.programs.language.drawing import draw_inputs, draw_programs
from experiments.evolution.programs.language.held_out import HELD_OUT
from experiments.evolution.programs.language.interpreter import run, well_typed
from experiments.evolution.programs.language.language import (
    MAX_LENGTH,
    MAX_OPERATIONS,
    OPERATIONS,
    Operation,
    Programs,
    Values,
)
from experiments.evolution.programs.language.tasks import (
    ANSWER_LENGTH,
    PROPOSAL_LENGTH,
    ProgramTasks,
    abduction,
    deduction,
    induction,
    proposals,
)
from experiments.evolution.programs.language.vocabulary import (
    BOS,
    EOS,
    PAD,
    WORDS,
    WordTokenizer,
    parse,
    parse_values,
    program_tokens,
    programs_of,
    texts_of,
    value_tokens,
    values_of,
)

__all__ = [
    "ANSWER_LENGTH",
    "BOS",
    "EOS",
    "HELD_OUT",
    "MAX_LENGTH",
    "MAX_OPERATIONS",
    "OPERATIONS",
    "PAD",
    "PROPOSAL_LENGTH",
    "WORDS",
    "Operation",
    "ProgramTasks",
    "Programs",
    "Values",
    "WordTokenizer",
    "abduction",
    "check_abduction",
    "check_deduction",
    "check_induction",
    "deduction",
    "draw_inputs",
    "draw_programs",
    "fingerprints",
    "held_out_programs",
    "induction",
    "is_degenerate",
    "is_held_out",
    "outputs_on_probes",
    "parse",
    "parse_proposals",
    "parse_values",
    "program_tokens",
    "programs_of",
    "proposals",
    "run",
    "texts_of",
    "value_tokens",
    "values_of",
    "well_typed",
]
