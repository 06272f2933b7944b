"""A language model that evolves itself: strings longer than any that it was taught.

python -m experiments.evolve teaches a small transformer without positions to copy strings of 1 to 8
digits, then lets it go on alone: each round it is given prompts one digit longer, answers them,
keeps the answers that it can trust without knowing the right ones, and trains on them, on those of
the rounds before, and on the real data. θ_{t+1} is taken only if held-out tasks say that it isn't
worse. A control trains as many steps, of as many tokens, on the real data alone.

--task takes reverse or addition (of reversed numbers), --proposer model lets the model write the
prompts too, --curriculum accelerated takes several lengths a round, and --filters none, --gate none
and --damage show what each part is there for. --size paper is the published size, for a GPU.

Source: Lee et al. 2025, "Self-Improving Transformers Overcome Easy-to-Hard and Length
Generalization Challenges" (arXiv 2502.01612), whose proposer is a program; the filters by the least
token's probability and by the most common length, the gate, and the model's own proposer are ours.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments import evolve_model
from experiments.evolve_model import Trained
from metajax import evolve as ev
from metajax import runs
from metajax._files import write_atomically
from metajax.models import Transformer, TransformerConfig
from metajax.runs import plots
from metajax.runs.report import duration, markdown_table

HELD_OUT_SEED, TEST_SEED = 11, 2025
MICRO_ROWS = 3
"""Rows that a core computes at a time."""


class Size(NamedTuple):
    """A model and how long it is trained.

    Attributes:
        model: of ``TransformerConfig.nope``.
        base_levels: digits of the real data's strings, up to so many.
        steps: updates of the base model.
        rounds: of self-evolution.
        round_steps: updates of each.
        proposals: tasks of each.
        rows: packed rows in an update.
        rate: AdamW's.
    """

    model: dict[str, Any]
    base_levels: int
    steps: int
    rounds: int
    round_steps: int
    proposals: int
    rows: int
    rate: float


SIZES = {
    "small": Size(
        {"width": 128, "n_layers": 3, "n_heads": 4, "mlp_width": 344},
        base_levels=8, steps=600, rounds=10, round_steps=500, proposals=4096, rows=24, rate=1e-3,
    ),
    "paper": Size(
        {"width": 384, "n_layers": 6, "n_heads": 6, "mlp_width": 1536, "dtype": jnp.bfloat16},
        base_levels=10, steps=2000, rounds=30, round_steps=500, proposals=20_000, rows=384,
        rate=5e-4,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config(runs.RunConfig):
    """Options of the experiment; what isn't given is the size's own."""

    size: Literal["small", "paper"] = "small"
    """The model and its schedule: 0.6 million parameters for two cores, or the paper's 14
    million."""
    task: Literal["copy", "reverse", "addition"] = "copy"
    """What is done with the digits."""
    proposer: Literal["program", "model"] = "program"
    """Who poses the tasks: a program, as published, or the model itself."""
    curriculum: Literal["one", "accelerated", "learnable"] = "one"
    """How many digits more a round: one; as many as the model can be trusted on; or the length of
    which it is least sure."""
    filters: Literal["all", "none"] = "all"
    """Which answers are kept: those that end, have the most common length and no doubtful token; or
    all."""
    confidence: float = 0.98
    """The least probability of a token of a kept answer."""
    gate: Literal["no_worse", "none"] = "no_worse"
    """Whether θ_{t+1} must pass held-out tasks."""
    damage: Literal["none", "once", "always"] = "none"
    """In half of the answers a digit is dropped, before they are verified: in round 3, or from
    round 3 on."""
    rounds: int | None = None
    """Rounds of self-evolution."""
    round_steps: int | None = None
    """Updates of each."""
    proposals: int | None = None
    """Tasks of each."""
    base_levels: int | None = None
    """The longest strings of the real data."""
    rows: int | None = None
    """Packed rows in an update, a multiple of 6."""
    rate: float | None = None
    """AdamW's learning rate."""
    row_length: int = 64
    """Tokens of a packed row, at least."""
    control: Literal["yes", "no"] = "yes"
    """Whether the control is trained."""
    test_prompts: int = 1024
    """Prompts of each length at the end; a quarter of them after each round."""

    may_differ: ClassVar[frozenset[str]] = runs.RunConfig.may_differ | {"test_prompts", "control"}

    def __post_init__(self) -> None:
        super().__post_init__()
        runs.check_positive(
            self, "rounds", "round_steps", "proposals", "base_levels", "rows", "rate", "row_length"
        )
        if self.rows is not None and self.rows % (2 * MICRO_ROWS):
            raise ValueError(f"rows must be a multiple of {2 * MICRO_ROWS}; got {self.rows}")
        if not 0 < self.confidence <= 1:
            raise ValueError(f"confidence must be above 0 and at most 1; got {self.confidence}")
        if self.test_prompts < 8:
            raise ValueError(f"test_prompts must be at least 8; got {self.test_prompts}")


class Setting(NamedTuple):
    """What a config comes to.

    Attributes:
        config: with nothing left out.
        problem: the tasks.
        model: the transformer.
        params: its initial parameters.
        apply: ``apply(params, tokens, segments=...)``.
        longest: the longest strings that are looked at.
    """

    config: Config
    problem: ev.Problem
    model: Transformer
    params: Any
    apply: metajax.losses.Apply
    longest: int


def setting_of(config: Config) -> Setting:
    """The model and the tasks of a config."""
    size = SIZES[config.size]
    own = {name: getattr(size, name) for name in size._fields if hasattr(config, name)}
    config = evolve_model.replaced(config, **own)
    assert config.base_levels is not None
    assert config.rounds is not None
    problem = ev.digits(config.task)
    faster = 4 if config.curriculum != "one" else 1
    longest = config.base_levels + faster * config.rounds + 2
    text = problem.prompt_length(longest) + problem.answer_length(longest) + 16
    model = Transformer(
        TransformerConfig.nope(
            vocab_size=problem.vocab_size, max_length=text + 32, scan=False, **size.model
        )
    )
    key = jax.random.key(config.seed)
    params, apply = metajax.from_linen(model, key, jnp.zeros((1, 2), jnp.int32))
    return Setting(config, problem, model, params, apply, longest)


def optimizer_of(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """AdamW as published, but for eps."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01)
    )


def schedule_of(rate: float, steps: int, stable: int) -> optax.Schedule:
    """Warm-up over a tenth, the rate up to the step ``stable``, then a decay to a hundredth."""
    warm = steps // 10
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, rate, warm),
            optax.constant_schedule(rate),
            optax.linear_schedule(rate, rate / 100, steps - stable),
        ],
        [warm, stable],
    )


def real_data(setting: Setting, key: jax.Array, count: int) -> ev.Examples:
    """Strings of the real data's lengths, each as likely as another."""
    assert setting.config.base_levels is not None
    levels = range(1, setting.config.base_levels + 1)
    return ev.real_examples(setting.problem, key, levels, count)


def solver_of(setting: Setting, **options: Any) -> ev.Solver:
    """Greedy answers, shared between the devices."""
    return ev.solver(
        setting.model,
        answer_length=setting.problem.answer_length,
        end=setting.problem.end,
        mesh=metajax.task_mesh(512),
        **options,
    )


def update_of(setting: Setting, shares: Callable[[Any], np.ndarray]) -> ev.Update:
    """Fine-tuning on a mixture; the rate starts again each round."""
    config = setting.config
    assert config.rate is not None
    assert config.round_steps is not None
    assert config.rows is not None
    steps, rate = config.round_steps, config.rate
    stable = steps // 2 if config.task == "addition" else steps // 10
    once = schedule_of(rate, steps, stable)
    count = config.rows // MICRO_ROWS
    return ev.fine_tune(
        setting.apply,
        optimizer_of(ev.every_round(once, steps)),
        steps=steps,
        shares=shares,
        rows=config.rows,
        row_length=config.row_length,
        micro_batches=count,
        prompts_too=config.proposer == "model",
        mesh=metajax.task_mesh(count),
    )


def parts_of(setting: Setting) -> ev.Parts:
    """The loop's parts."""
    config, problem = setting.config, setting.problem
    assert config.base_levels is not None
    assert config.proposals is not None
    solve = solver_of(setting)
    verifier = ev.everything()
    if config.filters == "all":
        verifier = ev.all_of(
            ev.must_end(), ev.most_common_length(), ev.confident(config.confidence)
        )
    if config.proposer == "program":
        propose = ev.drawn_by_program(problem, count=config.proposals)
    else:
        propose = ev.written_by_model(
            setting.model, problem, count=config.proposals, mesh=metajax.task_mesh(512)
        )
    first = config.base_levels + 1
    curricula = {
        "one": ev.one_harder(first),
        "accelerated": ev.accelerated(first),
        "learnable": ev.most_learnable(first),
    }

    def held_out(levels: ev.Levels) -> ev.HeldOut:
        recent = range(max(first, min(levels.first, levels.last - 1)), levels.last + 1)
        return ev.held_out_of(
            problem,
            jax.random.key(HELD_OUT_SEED),
            known=range(1, first),
            frontier=recent,
            each=512,
        )

    return ev.Parts(
        propose=propose,
        solve=solve,
        verifier=verifier,
        update=update_of(setting, ev.published_shares(config.base_levels)),
        gate=ev.no_worse(solve, verifier) if config.gate == "no_worse" else ev.always(),
        curriculum=curricula[config.curriculum],
        real=lambda key: real_data(setting, key, 8192),
        held_out=held_out,
        oracle=problem.solve,
        tamper=None if config.damage == "none" else damage_of(config),
    )


def damage_of(config: Config) -> Callable[[int, ev.Attempts], ev.Attempts]:
    """Drops the middle token of every other answer, in round 3, or from round 3 on."""

    def damage(number: int, attempts: ev.Attempts) -> ev.Attempts:
        if number < 3 or (number > 3 and config.damage == "once"):
            return attempts
        tokens, log_probs, lengths, ended = (np.array(leaf) for leaf in attempts)
        hit = (np.arange(len(lengths)) % 2 == 0)[:, None] & (lengths > 2)
        place = np.arange(tokens.shape[-1])
        source = np.minimum(place + (place >= lengths[..., None] // 2), tokens.shape[-1] - 1)
        for leaf in (tokens, log_probs):
            short = np.take_along_axis(leaf, source, axis=-1)
            short[..., -1] = 0
            leaf[hit] = short[hit]
        return ev.Attempts(tokens, log_probs, lengths - hit, ended)

    return damage


def scores_of(setting: Setting, levels: Sequence[int], prompts: int) -> Callable[[Any], dict]:
    """``scores(params)``: exact match at each length, of prompts that are in no training."""
    problem, solve = setting.problem, solver_of(setting)
    key = jax.random.key(TEST_SEED)
    # All lengths at once: short prompts are padded, and few programs are compiled.
    tasks = ev.joined(
        [problem.draw(jax.random.fold_in(key, level), np.full(prompts, level)) for level in levels]
    )
    answers = problem.solve(tasks)

    def scores(params: Any) -> dict[str, float]:
        right = np.asarray(ev.is_right(solve(params, key, tasks), answers)[:, 0])
        means = right.reshape(len(levels), prompts).mean(axis=1)
        return {f"exact_{level}": float(mean) for level, mean in zip(levels, means, strict=True)}

    return scores


def control_of(setting: Setting, run: runs.Run, base: Trained, rounds: int) -> Trained:
    """The base model trained on, as many steps of as many tokens, on real data alone."""
    update = update_of(setting, lambda kept: np.array([1.0] + [0.0] * len(kept)))
    state = update.init(base.params, jax.random.key(setting.config.seed))
    tokens = 0
    with runs.progress("control", 0, rounds, unit="round") as bar:
        for number in range(rounds):
            key = jax.random.fold_in(jax.random.key(setting.config.seed + 1), number)
            real = real_data(setting, key, 8192)
            state, _, own = update.update(state, ev.real_alone(real), key, 1.0)
            tokens += own
            bar.update(1)
    return Trained(state.params, float(bar.format_dict["elapsed"]), tokens)


def examples_text(setting: Setting, params: Any, records: Sequence[dict[str, Any]]) -> str:
    """Some of the model's own tasks and answers, from the easiest to the hardest."""
    problem, lines = setting.problem, []
    parts = parts_of(setting)
    assert setting.config.base_levels is not None
    last = int(records[-1].get("last_level", setting.config.base_levels))
    for level in sorted({1, setting.config.base_levels, last, last + 4}):
        levels = ev.Levels(level, level)
        tasks = parts.propose(params, jax.random.key(7), levels)
        tasks = jax.tree.map(lambda leaf: np.asarray(leaf)[:4], tasks)
        attempts = parts.solve(params, jax.random.key(8), tasks)
        right = np.asarray(ev.is_right(attempts, problem.solve(tasks))[:, 0])
        trusted = np.asarray(parts.verifier.verify(tasks, attempts).weight)
        for row in range(len(right)):
            text = problem.show([*tasks.prompts[row], *attempts.tokens[row, 0]])
            marks = ("right" if right[row] else "wrong") + (", kept" if trusted[row] else "")
            lines.append(f"{text}  {marks}" if tasks.valid[row] else f"{text}  no task")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Teaches, evolves, tests, and leaves everything in the run folder."""
    metajax.use_every_core()
    setting = setting_of(runs.parse(Config, arguments, __doc__ or ""))
    config = setting.config
    assert config.rows is not None
    assert config.rate is not None
    assert config.steps is not None
    assert config.rounds is not None
    assert config.proposals is not None
    run = runs.open_run(f"evolve-{config.task}", config)
    runs.create(run)
    real = real_data(setting, jax.random.key(config.seed + 2), 60_000)
    base = evolve_model.base_model(
        run,
        setting.apply,
        setting.params,
        optimizer_of(schedule_of(config.rate, config.steps, config.steps // 2)),
        ev.real_alone(real),
        steps=config.steps,
        rows=config.rows,
        row_length=config.row_length,
        micro_batches=config.rows // MICRO_ROWS,
        prompts_too=config.proposer == "model",
    )
    parts = parts_of(setting)
    levels = list(range(1, setting.longest + 1))
    longest_text = setting.problem.prompt_length(levels[-1]) + setting.problem.answer_length(
        levels[-1]
    )
    followed = evolve_model.follow(
        run,
        parts,
        ev.start(
            parts,
            base.params,
            jax.random.key(config.seed + 3),
            rounds=config.rounds,
            proposals=config.proposals,
            longest=longest_text,
            vocab_size=setting.problem.vocab_size,
        ),
        scores=scores_of(setting, levels, config.test_prompts // 4),
    )
    learned = sum(record.get("seconds_update") is not None for record in followed.records)
    control = None
    if config.control == "yes":
        control = control_of(setting, run, base, learned)
    final = scores_of(setting, levels, config.test_prompts)
    tested = {"round 0": final(base.params), "last round": final(followed.state.train.params)}
    if control is not None:
        tested["control"] = final(control.params)
    samples = examples_text(setting, followed.state.train.params, followed.records)
    write_atomically(run.path / "tasks.txt", samples)
    plots.by_level(
        run.path / "lengths.png",
        {
            record["step"]: (levels, [100 * record[f"exact_{level}"] for level in levels])
            for record in followed.records
        },
        control=None
        if control is None
        else (levels, [100 * tested["control"][f"exact_{level}"] for level in levels]),
        trained=config.base_levels or 0,
        xlabel="digits",
        ylabel="exact match in %",
    )
    table = write_results(run, setting, followed, base, control, tested, parts.verifier)
    print(f"\n{samples}\n{table}\nEverything is in {run.path}.")


def write_results(
    run: runs.Run,
    setting: Setting,
    followed: evolve_model.Followed,
    base: Trained,
    control: Trained | None,
    tested: dict[str, dict[str, float]],
    verifier: ev.Verifier,
) -> str:
    """Writes ``result.json`` and ``table.md``; returns the table."""
    config, records = setting.config, followed.records
    prompts = config.test_prompts
    interval = lambda p: 196 * np.sqrt(p * (1 - p) / (prompts - 1))
    shown = [level for level in range(1, setting.longest + 1) if level >= (config.base_levels or 1)]
    columns = {"digits": [str(level) for level in shown]}
    for name, scores in tested.items():
        values = [scores[f"exact_{level}"] for level in shown]
        columns[f"{name}, %"] = [f"{100 * v:.1f} ± {interval(v):.1f}" for v in values]
    own = evolve_model.seconds_of(records)
    trained = sum(record.get("tokens_trained", 0) for record in records)
    seconds = {
        "base model": base.seconds,
        "rounds": sum(own.values()),
        **({"control": control.seconds} if control is not None else {}),
    }
    rates = {
        "trained": trained / max(own.get("update", 0), 1e-9),
        "generated": sum(r.get("tokens_generated", 0) for r in records)
        / max(own.get("solve", 0), 1e-9),
    }
    where, command = runs.environment(), runs.command("experiments.evolve", config)
    tokens = {"base model": base.tokens, "rounds": trained}
    if control is not None:
        tokens["control, after the base model"] = control.tokens
    facts = {
        "Task": f"{config.task}, {prompts} prompts of each length, greedy, exact match",
        "Proposer": {"program": "a program (as published)", "model": "the model itself"}[
            config.proposer
        ],
        "Kept": f"{verifier.name}; no oracle" if not verifier.uses_oracle else verifier.name,
        "Ended": followed.stopped,
        "Tokens": ", ".join(f"{name} {count:,}" for name, count in tokens.items()),
        "Time": ", ".join(f"{name} {duration(value)}" for name, value in seconds.items()),
        "Tokens a second, compilation included": ", ".join(
            f"{name} {rate:,.0f}" for name, rate in rates.items()
        ),
        "Machine": f"{where['device']}, {where['cores']} cores",
        "Command": f"`{command}`, commit {where['commit'] or 'unknown'}",
    }
    table = "\n".join([
        f"# A model that evolves itself: {config.task}", "", *markdown_table(columns), "",
        "Round by round, in % (what is right is known to the report alone):", "",
        *markdown_table(evolve_model.rounds_table(records)), "",
        *[f"- {name}: {text}" for name, text in facts.items()], "",
    ])  # fmt: skip
    evolve_model.write_json(
        run.path / "result.json",
        {
            "tested": tested,
            "stopped": followed.stopped,
            "tokens": tokens,
            "seconds": seconds | {f"rounds, {name}": value for name, value in own.items()},
            "tokens_per_second": rates,
            "command": command,
            "environment": where,
        },
    )
    write_atomically(run.path / "table.md", table)
    return table


if __name__ == "__main__":
    runs.guard(main)
