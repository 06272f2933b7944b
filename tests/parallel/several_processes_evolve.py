"""What test_several_processes_evolve.py runs as two processes, and computes again in one."""

import contextlib
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from evolve.stand_in_server import StandIn, serving

import metajax
from metajax import evolve as ev
from metajax import lm, parallel
from metajax.models import Transformer, TransformerConfig

VOCABULARY, END = 13, 12
TOKENIZER = lm.CharTokenizer.of("0123456789=", specials=("<pad>",))
CONFIG = TransformerConfig.nope(vocab_size=VOCABULARY, width=16, n_layers=2, n_heads=2)
PROMPTS = [[1, 2, 11], [3, 11], [4, 5, 6, 11], [7, 11]]


def problem():
    return ev.text_problem(
        TOKENIZER,
        name="copy",
        write=lambda rng, level: "".join(map(str, rng.integers(0, 10, level))) + "=",
        answer=lambda prompt: prompt[:-1],
        read=lambda text: len(text) - 1 if text[:-1].isdigit() and text[-1] == "=" else None,
        longest=lambda level: (level + 1, level),
        end=END,
        vocab_size=VOCABULARY,
    )


def start():
    """A model, and parameters that are the same everywhere."""
    model = Transformer(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    return model, jax.tree.map(lambda leaf: 2.0 * leaf, params)


def mesh_of(tasks, model=1):
    """All devices, or none in a run that is compared with."""
    if jax.process_count() == 1:
        return None
    return metajax.task_mesh(tasks, model=model)


def placed(params, mesh):
    """Split, where the mesh has a model axis."""
    if mesh is None or "model" not in mesh.axis_names:
        return params
    return metajax.shard_params(params, mesh, min_size=0)


def generated(mesh):
    model, params = start()
    found = lm.generate(
        model,
        placed(params, mesh),
        PROMPTS,
        jax.random.key(1),
        max_new_tokens=6,
        sampling=lm.SamplingParams(1.0, stop_tokens=(END,)),
        samples=2,
        mesh=mesh,
    )
    return {name: np.asarray(leaf) for name, leaf in found._asdict().items()}


def served():
    """Completions of a server that the first process alone can ask."""
    model, params = start()
    stand_in = StandIn(model, params, url="http://127.0.0.1:9")
    first = jax.process_index() == 0
    with serving(stand_in) if first else contextlib.nullcontext():
        solve = ev.served(
            stand_in.url,
            model,
            answer_length=problem().answer_length,
            end=END,
            samples=2,
            temperature=1.0,
        )
        tasks = problem().draw(jax.random.key(4), [1, 2, 2, 3])
        found = solve(params, jax.random.key(5), tasks)
    return found._asdict()


def decided_by_process(tasks, completions):
    """A verifier in Python that no two processes agree about."""
    rng = np.random.default_rng(7 + jax.process_index())
    rewards = rng.integers(0, 2, np.shape(completions.lengths)).astype(np.float32)
    rewards[:, 0], rewards[:, 1] = 0, 1
    weight = np.asarray(tasks.valid, np.float32)
    return ev.Verdict(rewards.argmax(axis=1), weight, rewards.mean(axis=1), rewards)


def one_round(update, *, tasks=4, model=1):
    """The parameters after a round, and what it reported."""
    mesh, family = mesh_of(tasks, model), problem()
    network, params = start()
    apply = lambda params, tokens, **options: network.apply({"params": params}, tokens, **options)
    solve = ev.model_solver(
        network,
        answer_length=family.answer_length,
        end=END,
        samples=3,
        temperature=1.0,
        chunk=8,
        mesh=mesh,
    )
    verifier = ev.Verifier("Python", decided_by_process)
    if update == "fine_tune":
        train = ev.fine_tune(
            apply,
            optax.adam(1e-2),
            steps=3,
            mixture=ev.published_mixture(2),
            rows=8,
            row_length=16,
            micro_batches=4,
            pool=16,
            mesh=mesh,
        )
    else:
        train = ev.grpo(apply, optax.adam(1e-2), steps=3, batch=8, micro_batches=4, mesh=mesh)
    loop = ev.EvolveConfig(
        ev.program_proposer(family, count=8),
        solve,
        verifier,
        train,
        ev.accept_all(),
        ev.one_harder(3),
        real=lambda key: ev.real_examples(family, key, range(1, 3), 32),
        held_out=lambda levels: ev.held_out_tasks(
            family, jax.random.key(1), known=range(1, 3), frontier=range(3, 4), each=4
        ),
    )
    state = ev.init_state(
        loop,
        placed(params, mesh),
        jax.random.key(2),
        rounds=1,
        proposals=8,
        longest=16,
        vocab_size=VOCABULARY,
    )
    (after, report), *_ = ev.evolve(loop, state)
    return {
        "params": parallel.to_host(after.train.params),
        "replay": after.replay,
        "metrics": dict(report.metrics),
        "levels": np.asarray(after.levels),
        "parts": np.array([_parts(leaf) for leaf in jax.tree.leaves(after.train.optimizer_state)]),
    }


def _parts(leaf):
    """How many different parts the devices hold of an array."""
    return len({str(part) for part in leaf.sharding.devices_indices_map(leaf.shape).values()})


def flat(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def everything():
    found = {
        "generate": generated(mesh_of(4)),
        "fine_tune": one_round("fine_tune"),
        "grpo": one_round("grpo"),
        "served": served(),
        "split generate": generated(mesh_of(2, 2)),
        "split fine_tune": one_round("fine_tune", tasks=2, model=2),
        "split grpo": one_round("grpo", tasks=2, model=2),
    }
    return flat(found)


def error_of_first():
    try:
        parallel.from_first(lambda: 1 / 0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main():
    coordinator, index, folder = sys.argv[1:]
    jax.distributed.initialize(coordinator, 2, int(index))
    parallel.from_first(lambda: 0)
    path = pathlib.Path(folder)
    np.savez(path / f"{index}.npz", **everything())
    (path / f"error-{index}").write_text(error_of_first())


if __name__ == "__main__":
    main()
