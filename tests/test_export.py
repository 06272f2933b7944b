"""A saved program of adaptation and prediction, in a process without metajax."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import metajax
from metajax.models import Conv4

ELSEWHERE = """
import sys
import jax, numpy as np
class Refuses:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("metajax", "flax", "optax"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuses())
program = jax.export.deserialize(open("program", "rb").read())
data = np.load("data.npz")
for number in (7, 2):
    print(np.abs(program.call((data["shots"], data["labels"]), data["queries"][:number])
                 - data["logits"][:number]).max() < 1e-4)
"""


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize("form", ["stride", "pool"])
def test_it_is_loaded_and_called_without_metajax(form, tmp_path):
    """Also where the program is for other platforms too: it then has no form of a CPU's own."""
    pytest.importorskip("flatbuffers")
    net = Conv4(3, features=8, form=form)  # whose statistics are the batch's
    params, apply = metajax.from_linen(net, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    learner = metajax.maml(metajax.losses.cross_entropy(apply), optax.sgd(0.1), steps=2)
    shots, queries = jax.random.uniform(jax.random.key(1), (2, 7, 28, 28, 1))
    support = metajax.Batch(shots, jnp.arange(7) % 3)
    program = metajax.export(learner, params, support, queries)
    assert program.platforms == ("cpu", "cuda", "tpu")
    (tmp_path / "program").write_bytes(program.serialize())
    adapted, _ = jax.jit(learner.adapt)(params, support)
    logits = [jax.jit(learner.predict)(adapted, None, queries[:number]) for number in (7, 2)]
    for number, expected in zip((7, 2), logits, strict=True):
        np.savez(
            tmp_path / "data.npz",
            shots=shots,
            labels=support.targets,
            queries=queries[:number],
            logits=expected,
        )
        printed = subprocess.run(
            [sys.executable, "-c", ELSEWHERE.replace("(7, 2)", f"({number},)")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert printed.stdout.split() == ["True"]


def test_a_keyed_learner_is_called_with_a_key():
    learner = metajax.maml(
        metajax.losses.mean_squared_error(toy.predict_with_dropout), optax.sgd(0.1), steps=2
    )
    params, key = toy.init_params(), jax.random.key(3)
    support, query, _ = toy.make_sampler()(jax.random.key(0))
    episode = metajax.Episode(support, None, key)
    adapted, _ = metajax.learners.adapt_to(learner, params, episode)
    expected = learner.predict(
        adapted, support, query.inputs, key=metajax.learners.query_key(episode)
    )
    program = metajax.export(learner, params, support, query.inputs, any_number=False)
    found = program.call(tuple(support), query.inputs, jax.random.key_data(key))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_padding_is_exported_too():
    learner = metajax.prototypical(toy.embed, n_way=toy.WAYS)
    params = toy.init_params()
    support, query, _ = toy.make_class_sampler()(jax.random.key(0))
    half = jnp.arange(len(support.inputs)) % 2 == 0
    masked = metajax.MaskedBatch(*support, mask=half)
    program = metajax.export(learner, params, masked, query.inputs, platforms=["cpu"])
    adapted, _ = learner.adapt(params, masked)
    np.testing.assert_allclose(
        program.call(tuple(masked), query.inputs),
        learner.predict(adapted, masked, query.inputs),
        rtol=1e-5,
    )


def test_what_cannot_be_exported_is_named():
    support, query, _ = toy.make_sampler()(jax.random.key(0))
    params = toy.init_params()
    learner = metajax.maml(toy.loss_fn, optax.sgd(0.1), steps=1, predict=toy.predict)
    with pytest.raises(metajax.ArgumentError, match="learner has no predict"):
        metajax.export(learner._replace(predict=None), params, support, query.inputs)
    for platforms in ("cpu", [], ["gpu"]):
        with pytest.raises(metajax.ArgumentError, match="platforms must be"):
            metajax.export(learner, params, support, query.inputs, platforms=platforms)
    with pytest.raises(metajax.ArgumentError, match="inputs must have a leading axis"):
        metajax.export(learner, params, support, jnp.ones(()))
