"""The loop's parts: proposer, solver and verifier of programs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.evolution.programs import language as pg
from experiments.evolution.programs.language import vocabulary
from experiments.evolution.programs.tasks import (
    KINDS,
    concatenate,
    draw_examples,
    make_tasks,
    may_be_learned,
    take_rows,
    tasks_per_kind,
)
from metajax import evolve as ev
from metajax.errors import ArgumentError
from metajax.models import Transformer

_CHECKS = tuple(map(jax.jit, (pg.check_deduction, pg.check_abduction, pg.check_induction)))


def joined_pairs(
    programs: pg.Programs, first: np.ndarray, second: np.ndarray
) -> tuple[pg.Programs, np.ndarray]:
    """The pipelines ``first | second`` of pairs of programs.

    Args:
        programs: ``n`` of them.
        first: rows of the programs, ``[pairs]``.
        second: rows of the programs, ``[pairs]``.

    Returns:
        Programs ``[pairs]``, and which of them are well typed and not too long, bool ``[pairs]``;
        the others mean nothing.
    """
    operations, arguments, lengths = (np.asarray(leaf) for leaf in programs)
    start, more = lengths[first], lengths[second]
    place = np.arange(pg.MAX_OPERATIONS)
    from_first = place < start[:, None]
    source = np.clip(place - start[:, None], 0, pg.MAX_OPERATIONS - 1)
    fits = start + more <= pg.MAX_OPERATIONS
    total = np.where(fits, start + more, 0)

    def join(leaf: np.ndarray) -> np.ndarray:
        behind = np.take_along_axis(leaf[second], source, axis=1)
        both = np.where(from_first, leaf[first], behind)
        return np.where(place < total[:, None], both, 0)

    made = pg.Programs(*map(jnp.asarray, (join(operations), join(arguments), total)))
    return take_rows(made, slice(None)), fits & np.asarray(pg.well_typed(made))


class Written(NamedTuple):
    """What a model wrote when it was asked for programs with inputs.

    Attributes:
        programs: ``n`` of them.
        inputs: values ``[n]``.
        valid: bool ``[n]``, whether the text is a well-typed program and a list.
        usable: bool ``[n]``, whether it is also neither held out nor degenerate.
        marks: what each program does, as a hash, ``[n]``.
    """

    programs: pg.Programs
    inputs: pg.Values
    valid: np.ndarray
    usable: np.ndarray
    marks: np.ndarray


def writer(
    model: Transformer, *, texts: int, temperature: float, mesh: Mesh | None = None
) -> Callable[[Any, jax.Array], Written]:
    """``write(params, key) -> Written``: samples programs with inputs.

    Args:
        model: the language model.
        texts: how many.
        temperature: of sampling.
        mesh: devices that share them.
    """
    solve = ev.model_solver(
        model,
        answer_length=lambda level: pg.PROPOSAL_LENGTH,
        end=pg.EOS,
        temperature=temperature,
        slack=0,
        chunk=min(texts, 512),
        mesh=mesh,
    )
    prompts = np.tile(np.array([[pg.BOS, vocabulary.PROPOSE]], np.int32), (texts, 1))
    ones = np.ones(texts, np.int32)
    asked = ev.Tasks(prompts, 2 * ones, ones, ones > 0)

    def write(params: Any, key: jax.Array) -> Written:
        tokens = solve(params, key, asked).tokens[:, 0]
        programs, inputs, valid = jax.tree.map(np.asarray, pg.parse_proposals(jnp.asarray(tokens)))
        valid = valid & (inputs.lengths > 0)
        allowed, marks = may_be_learned(programs)
        return Written(programs, inputs, valid, valid & allowed, marks)

    return write


def first_of_each(marks: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Which of the candidates, bool ``[n]``, are the first with their mark."""
    found, places = np.zeros(len(marks), bool), np.flatnonzero(candidates)
    found[places[np.unique(marks[places], return_index=True)[1]]] = True
    return found


def proposer(
    write: Callable[[Any, jax.Array], Written], *, count: int, longest: int
) -> ev.Proposer:
    """The model's own proposer: ``count`` tasks a round, in blocks as ``tasks_per_kind`` has them.

    The model writes programs with inputs. A program is left out if it isn't well typed, is held
    out or degenerate, or does what another one of the round does. A program with the wanted number
    of operations is taken as it is; two others are joined into one, with the input of the first.
    So programs get longer than those that the model was taught.

    Args:
        write: from ``writer``.
        count: tasks a round.
        longest: digits of the further inputs that induction needs, at most.
    """
    numbers = tasks_per_kind(count)

    def propose(params: Any, key: jax.Array, levels: ev.Levels, /) -> ev.Tasks:
        write_key, pair_key, input_key = jax.random.split(key, 3)
        written = write(params, write_key)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(pair_key)).tolist())
        wanted = lambda lengths: (lengths >= levels.first) & (lengths <= levels.last)
        usable = np.flatnonzero(written.usable)
        pairs = rng.choice(usable if usable.size else np.zeros(1, int), (2, 12 * numbers[0]))
        made, fits = joined_pairs(written.programs, *pairs)
        fits = fits & wanted(made.lengths) & bool(usable.size)
        # As many candidates in any case, so that nothing is compiled again.
        taken = np.argsort(~fits, kind="stable")[: 2 * numbers[0]]
        made = take_rows(made, taken)
        allowed, made_marks = may_be_learned(made)
        fits = fits[taken] & allowed
        programs = concatenate([written.programs, made])
        inputs = concatenate([written.inputs, take_rows(written.inputs, pairs[0][taken])])
        candidates = np.concatenate([written.usable & wanted(written.programs.lengths), fits])
        marks = np.concatenate([written.marks, made_marks])
        new = first_of_each(marks, candidates)
        joined = np.arange(len(new)) >= len(written.valid)
        order = np.argsort(~new, kind="stable")[: numbers[0]]
        order = np.resize(order, numbers[0])
        examples = draw_examples(input_key, take_rows(inputs, order), longest)
        found = (take_rows(programs, order), examples, joined[order])
        parts, start = [], 0
        for kind, number in enumerate(numbers):
            # Abduction and induction share the programs out; proposals are those of deduction.
            begin = start if kind in (1, 2) else 0
            part = np.arange(begin, begin + number) % numbers[0]
            tasks, _ = make_tasks(kind, *take_rows(found, part))
            parts.append(tasks._replace(valid=new[order][part]))
            start = begin + number if kind in (1, 2) else 0
        return concatenate(parts)

    return propose


def solver(solve: ev.Solver, samples: int, *, shown: bool) -> ev.Solver:
    """Answers tasks with another solver; a proposal's answer is its end token.

    Args:
        solve: gives ``samples`` completions.
        samples: completions of each task.
        shown: whether one more is added: the interpreter's output for a deduction, the first
            completion again for other kinds.
    """

    def solve_all(params: Any, key: jax.Array, tasks: ev.Tasks, /) -> ev.Completions:
        kind = np.asarray(tasks.about.kind)
        found = solve(params, key, take_rows(tasks, kind != 3))
        shape = (len(kind), samples, found.tokens.shape[-1])
        tokens, log_probs = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        tokens[..., 0] = pg.EOS
        lengths, ended = np.ones(shape[:2], np.int32), np.ones(shape[:2], bool)
        whole = ev.Completions(tokens, log_probs, lengths, ended)
        for leaf, answered in zip(whole, found, strict=True):
            leaf[kind != 3] = answered
        if not shown:
            return whole
        whole = ev.Completions(*(np.concatenate([leaf, leaf[:, :1]], axis=1) for leaf in whole))
        deduced = np.flatnonzero(kind == 0)
        inputs = take_rows(tasks.about.inputs, (deduced, 0))
        outputs = pg.value_tokens(pg.run(take_rows(tasks.about.programs, deduced), inputs))
        outputs = np.asarray(outputs)
        whole.tokens[deduced, -1] = 0
        whole.tokens[deduced, -1, : outputs.shape[1]] = outputs
        whole.log_probs[deduced, -1] = 0  # the model didn't write it
        whole.lengths[deduced, -1] = (outputs != pg.PAD).sum(axis=1)
        whole.ended[deduced, -1] = True
        return whole

    return solve_all


def right_answers(tasks: ev.Tasks, completions: ev.Completions) -> np.ndarray:
    """Which completions ``[n, samples]`` are right, as the interpreter finds; of proposals, all."""
    tokens = np.asarray(completions.tokens)
    samples = tokens.shape[1]
    right = np.ones(tokens.shape[:2], bool)
    for kind, check in enumerate(_CHECKS):
        rows = np.flatnonzero(np.asarray(tasks.about.kind) == kind)
        if not rows.size:
            continue
        inputs = take_rows(tasks.about.inputs, (rows,) if kind == 2 else (rows, 0))
        programs = take_rows(tasks.about.programs, rows)
        outputs = pg.run(programs, inputs)
        whole = pg.ProgramTasks(rows, rows, programs, inputs, outputs)  # pyright: ignore[reportArgumentType]
        repeated = take_rows(whole, np.repeat(np.arange(len(rows)), samples))
        answers = jnp.asarray(tokens[rows].reshape(-1, tokens.shape[2]))
        right[rows] = np.asarray(check(repeated, answers)).reshape(-1, samples)
    return right


def by_interpreter(weight: str = "learnable", *, shown: bool = False) -> ev.Verifier:
    """The interpreter checks answers; the label is the first right sample.

    A proposal's agreement is that of the deduction with the same program: the proposals are those
    of the first deductions, in their order.

    Args:
        weight: ``"learnable"`` is 1 - p where the share p of right samples isn't 0, Absolute
            Zero's reward; ``"uncertain"`` is min(p, 1 - p), as R-Zero's; ``"right"`` is 1 where p
            isn't 0.
        shown: whether the last sample of each task is the ``shown`` one of ``solver``. It doesn't
            count for p; it is the label of deductions, of those that no sample got right too, with
            weight 1.

    Raises:
        ValueError: from ``verify``, more proposals than deductions.

    Source: Zhao et al. 2025 (arXiv 2505.03335), equation 4.
    """

    def verify(tasks: ev.Tasks, completions: ev.Completions) -> ev.Verdict:
        right, kind = right_answers(tasks, completions), np.asarray(tasks.about.kind)
        last = right.shape[1] - 1
        sampled = right[:, :last] if shown else right
        agreement = sampled.mean(axis=1, dtype=np.float32)
        if (kind == 3).any():
            if (kind == 3).sum() > (kind == 0).sum():
                raise ArgumentError(
                    f"tasks must have a deduction for each proposal, got {(kind == 0).sum()} for "
                    f"{(kind == 3).sum()}."
                )
            agreement[kind == 3] = agreement[kind == 0][: (kind == 3).sum()]
        trusted = (agreement > 0).astype(np.float32)
        if weight == "learnable":
            trusted = np.array(ev.learnability(jnp.asarray(agreement)))
        if weight == "uncertain":
            trusted = np.array(ev.uncertainty(jnp.asarray(agreement)))
        choice = sampled.argmax(axis=1)
        if shown:
            choice = np.where(kind == 0, last, choice)
            trusted[(kind == 0) & (agreement == 0)] = 1
        return ev.Verdict(choice, trusted, agreement)

    name = f"the interpreter, weight {weight}" + (", its outputs shown" if shown else "")
    return ev.Verifier(name, verify, uses_oracle=True)


def accuracies(
    solve: ev.Solver, params: Any, tests: list[ev.Tasks], inputs: int
) -> Mapping[str, np.ndarray]:
    """The share of right answers to each program's tasks ``[programs]``, by kind."""
    key = jax.random.key(0)
    return {
        KINDS[number]: right_answers(tasks, solve(params, key, tasks)).reshape(-1, inputs).mean(1)
        for number, tasks in enumerate(tests)
    }
