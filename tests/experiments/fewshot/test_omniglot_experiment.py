"""The Omniglot experiment: its schedules against the published facts, and one tiny run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from experiments import common
from experiments.fewshot import networks, schedules
from experiments.fewshot.omniglot import train as experiment
from experiments.fewshot.omniglot.published import BY_GRADIENTS
from experiments.fewshot.omniglot.schedules import schedule_of

ARTEFACTS = ("config.json", "metrics.jsonl", "result.json", "table.md", "checkpoints",
             "training.png", "inner_steps.png", "episode.png")  # fmt: skip


def rates(optimizer, steps):
    """The learning rate that Adam uses at each step: the size of its update of a constant slope."""

    def one(state, _):
        update, state = optimizer.update(1.0, state, 0.0)
        return state, -update

    return np.asarray(jax.lax.scan(one, optimizer.init(0.0), length=steps)[1])


@pytest.mark.parametrize(
    ("n_way", "meta_batch", "inner_steps", "test_steps"), [(5, 32, 1, 3), (20, 16, 5, 5)]
)
def test_the_papers_schedule(n_way, meta_batch, inner_steps, test_steps):
    schedule = schedule_of(protocol="paper", n_way=n_way)
    assert schedule.steps == 60_000
    assert schedule.inner_rate == 2.0
    assert schedule.head_std == 1
    assert schedule.rotations == "per_class"
    assert (schedule.meta_batch, schedule.inner_steps) == (meta_batch, inner_steps)
    assert schedule.test_steps == test_steps
    np.testing.assert_allclose(rates(schedule.optimizer, 50), 1e-3, rtol=1e-4)


def test_the_fast_schedule_follows_the_number_of_steps():
    assert schedule_of().steps == 16_000
    schedule = schedule_of(steps=1000)
    assert schedule.inner_rate == "1.0 at first, learned for each leaf"
    assert schedule.rotations == "as_classes"
    assert schedule.meta_batch == 8
    used = rates(optax.adam(schedules.warmup_cosine(3e-3, 1000)), 1001)
    assert used[0] == 0
    np.testing.assert_allclose(used[100], 1.5e-3, rtol=1e-3)
    np.testing.assert_allclose(used[200], 3e-3, rtol=1e-3)
    np.testing.assert_allclose(used[600], (3e-3 + 1e-6) / 2, rtol=1e-3)
    np.testing.assert_allclose(used[1000], 1e-6, rtol=1e-2)


def test_the_optimizer_takes_larger_steps_of_learned_rates():
    gradient = metajax.MAMLPlusPlusParams(jnp.ones(2), jnp.ones(2))
    optimizer = schedules.with_learned_rates(optax.sgd(0.1), factor=3.0)
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_allclose(updates.params, -0.1 * np.ones(2), rtol=1e-6)
    np.testing.assert_allclose(updates.log_rates, -0.3 * np.ones(2), rtol=1e-6)


def test_muon_turns_a_kernels_gradient_into_an_orthogonal_update():
    gradient = {
        "kernel": jax.random.normal(jax.random.key(0), (3, 3, 16, 8)) * jnp.arange(1.0, 9.0),
        "bias": jnp.array([1.0, -3.0]),
    }
    optimizer = schedules.muon(1e-2)
    update, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    matrix = np.asarray(update["kernel"]).reshape(-1, 8)
    # Five Newton-Schulz steps bring the singular values near 1, not to it.
    sizes = np.linalg.svd(matrix, compute_uv=False) / (0.2 * 1e-2 * np.sqrt(9 * 16))
    assert sizes.min() > 0.6
    assert sizes.max() < 1.3
    # Adam's first step with Nesterov's momentum: β m / (1 - β²) + g, where m = (1 - β) g.
    first = 1e-2 * (0.9 * 0.1 / (1 - 0.9**2) + 1)
    np.testing.assert_allclose(update["bias"], [-first, first], rtol=1e-4)


def test_the_head_may_start_otherwise():
    assert schedule_of().head_std == networks.HEAD_STD
    assert schedule_of(protocol="paper", head_std=0.5).head_std == 0.5
    assert experiment.preset().head_std == networks.HEAD_STD
    assert experiment.preset(protocol="paper").head_std == 1.0


@pytest.mark.parametrize("steps", [1, 2, 3, 150])
def test_short_schedules_are_finite(steps):
    assert np.isfinite([schedules.warmup_cosine(2e-3, steps)(step) for step in range(steps)]).all()


def test_rows_of_the_table(small_data):
    config = experiment.preset(protocol="paper")
    network = networks.conv4(5, jax.random.key(0), features=2)
    schedule = schedule_of(protocol="paper")
    rows = experiment.evaluations(config, schedule, network, small_data("test"))
    found = [(row.task, row.query, row.inner_steps, row.paper) for row in rows]
    assert found == [
        ("5-way 1-shot", 1, 3, "98.7 ± 0.4"),
        ("5-way 1-shot", 1, 3, None),
        ("5-way 1-shot", 15, 3, None),
        ("5-way 5-shot", 5, 3, "99.9 ± 0.1"),
        ("5-way 5-shot", 5, 3, None),
        ("5-way 5-shot", 15, 3, None),
    ]
    for row, shots in zip(rows, (1, 1, 1, 5, 5, 5), strict=True):
        episode = jax.eval_shape(row.sample, jax.random.key(0))
        assert len(episode.support.targets) == 5 * shots
        assert len(episode.query.targets) == 5 * row.query


@pytest.mark.slow
def test_only_the_honest_rows_ignore_the_other_queries(small_data):
    config = experiment.preset()
    network = networks.conv4(5, jax.random.key(0), head_std=1.0, features=4)
    rows = experiment.evaluations(config, schedule_of(), network, small_data("test"))
    paper, _, honest = rows[:3]
    episode = jax.jit(honest.sample)(jax.random.key(0))
    first = jax.tree.map(lambda leaf: leaf[:1], episode.query)
    others = jax.tree.map(lambda leaf: leaf[1:2], episode.query)

    def loss(row, query):
        score = jax.jit(row.learner.loss)
        params = row.learner.init(network.params)
        return float(score(params, episode._replace(query=query))[0])

    both = jax.tree.map(lambda leaf: leaf[:2], episode.query)
    alone = (loss(honest, first) + loss(honest, others)) / 2
    assert loss(honest, both) == pytest.approx(alone, rel=1e-5)
    alone = (loss(paper, first) + loss(paper, others)) / 2
    assert abs(loss(paper, both) - alone) > 1e-3


@pytest.mark.slow
def test_the_normalisations_shift_is_trained_but_not_adapted(small_data):
    network = networks.conv4(5, jax.random.key(0), features=4)
    config = experiment.preset(protocol="paper")
    row, *_ = experiment.evaluations(
        config, schedule_of(protocol="paper"), network, small_data("test")
    )
    episode = jax.jit(row.sample)(jax.random.key(0))
    adapted, _ = jax.jit(row.learner.adapt)(network.params, episode.support)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), adapted, network.params)
    assert not changed["norm_0"]["bias"]
    assert changed["conv_0"]["kernel"]
    assert changed["head"]["kernel"]

    def outer(params):
        return row.learner.loss(row.learner.adapt(params, episode.support)[0], episode)[0]

    gradient = jax.jit(jax.grad(outer))(network.params)
    assert optax.tree.norm(gradient["norm_0"]) > 0


@pytest.mark.ci
@pytest.mark.slow
def test_a_tiny_run_and_a_resume(tmp_path, monkeypatch, capsys, small_data, small_network):
    monkeypatch.setattr(experiment, "omniglot", small_data)
    out = tmp_path / "run"
    # 5-shot training: half the rows to compile
    arguments = ["--n-way", "5", "--k-shot", "5", "--steps", "2", "--test-episodes", "2"]
    experiment.main([*arguments, "--out", str(out)])
    printed = capsys.readouterr().out
    for name in ARTEFACTS:
        assert (out / name).exists(), name
    for picture in out.glob("*.png"):
        # the episode is of noise here, which PNG cannot compress
        assert picture.stat().st_size < 100_000 or picture.name == "episode.png"
    table = (out / "table.md").read_text()
    assert table in printed
    assert "99.9 ± 0.1" in table
    assert "ours: learned inner rates, Muon" in table
    assert "1.0 at first, learned for each leaf" in table
    result = json.loads((out / "result.json").read_text())
    assert len(result["rows"]) == 3
    assert result["training"]["steps"] == 2
    assert len(result["curves"][0]["mean"]) == 11
    lines = common.read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2]
    assert 0 <= lines[0]["validation_accuracy"] <= 1

    with pytest.raises(common.RunError, match="method was 'maml' and is now 'fomaml'"):
        experiment.main([*arguments, "--out", str(out), "--resume", "--method", "fomaml"])
    with pytest.raises(common.RunError, match="already there"):
        experiment.main([*arguments, "--out", str(out)])
    assert (out / "table.md").read_text() == table


@pytest.mark.slow
def test_two_seeds_at_once_leave_a_folder_each(tmp_path, monkeypatch, small_data, small_network):
    monkeypatch.setattr(experiment, "omniglot", small_data)
    out = tmp_path / "run"
    arguments = ["--k-shot", "5", "--steps", "2", "--test-episodes", "2", "--seeds", "2"]
    experiment.main([*arguments, "--out", str(out)])
    results = [json.loads((out / f"seed-{seed}" / "result.json").read_text()) for seed in (0, 1)]
    assert [result["training"]["seed"] for result in results] == [0, 1]
    assert len(results[0]["rows"]) == 3
    (line,) = common.read_metrics(out / "metrics.jsonl")
    assert line["loss_0"] != line["loss_1"]
    each = [line["validation_accuracy_0"], line["validation_accuracy_1"]]
    assert line["validation_accuracy"] == pytest.approx(np.mean(each))
    for options in (["--non-finite", "raise"], ["--seeds", "0"]):
        with pytest.raises(SystemExit):
            experiment.main([*arguments, *options])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fomaml", "reptile", "anil", "maml++", "imaml"])
def test_other_learners_train_and_are_evaluated(
    method, tmp_path, monkeypatch, small_data, small_network
):
    def shorter(*arguments, **options):  # fewer inner steps at test, each of which is compiled
        schedule = schedule_of(*arguments, **options)
        if method == "maml++":  # whose rates belong to its steps
            return schedule
        return schedule._replace(test_steps=2, curve_steps=2 * (schedule.curve_steps > 0))

    monkeypatch.setattr(experiment, "schedule_of", shorter)
    monkeypatch.setattr(experiment, "omniglot", small_data)
    out = tmp_path / "run"
    arguments = ["--method", method, "--k-shot", "5", "--steps", "2", "--test-episodes", "2"]
    experiment.main([*arguments, "--out", str(out)])
    result = json.loads((out / "result.json").read_text())
    source, figures = BY_GRADIENTS[method]
    assert [row["paper"] for row in result["rows"]] == [figures.get((5, 5)), None, None]
    assert [row["transductive"] for row in result["rows"]] == [True, True, False]
    assert result["source"] == source
    assert (out / "episode.png").exists()


@pytest.mark.parametrize("method", BY_GRADIENTS)
@pytest.mark.parametrize("n_way", [5, 20])
def test_published_schedules_and_ours_have_their_own_lengths(method, n_way):
    paper, fast = (schedule_of(method, protocol, n_way=n_way) for protocol in ("paper", "fast"))
    assert paper.steps > fast.steps
    assert schedule_of(method, n_way=n_way, steps=7).steps == 7


def test_reptile_s_outer_step_falls_to_zero_and_its_support_is_larger():
    schedule = schedule_of("reptile", "paper")
    one, state = jnp.array(1.0), schedule.optimizer.init(jnp.array(0.0))
    for step, expected in ((0, 1.0), (50_000, 0.5), (100_000, 0.0)):
        at = jax.tree.map(lambda count, step=step: jnp.full_like(count, step), state)
        update, _ = schedule.optimizer.update(one, at)
        np.testing.assert_allclose(-update, expected, atol=1e-6)
    assert (schedule.train_shot, schedule.inner_steps, schedule.test_steps) == (10, 5, 50)


def test_only_the_papers_constant_schedule_may_be_given_more_steps():
    fast, paper = experiment.preset(), experiment.preset(protocol="paper")
    steps = lambda config, count: dataclasses.replace(config, steps=count)
    assert steps(paper, 300).goes_on_from(200)
    assert not steps(paper, 200).goes_on_from(300)
    assert not steps(paper, 300).goes_on_from(250)  # not at a boundary: it would round differently
    assert not steps(fast, 300).goes_on_from(200)
    assert steps(fast, 300).goes_on_from(300)


@pytest.mark.parametrize("method", BY_GRADIENTS)
def test_the_command_says_what_the_preset_does_not(method):
    preset, read = experiment.preset, experiment.common.parse
    for protocol in ("fast", "paper"):
        config = preset(method, protocol, 20)
        for changed in (config, dataclasses.replace(config, steps=16_000, head_std=0.5)):
            words = common.command("m", changed, preset=preset).split()[3:]
            assert read(experiment.Config, words, "", preset=preset) == changed


def test_bad_input_leaves_no_run_folder(tmp_path, monkeypatch, small_data):
    monkeypatch.setattr(experiment, "omniglot", small_data)
    for arguments, message in ((["--n-way", "21"], "n_way"), (["--k-shot", "11"], "k_shot")):
        with pytest.raises(ValueError, match=message):
            experiment.main([*arguments, "--protocol", "paper", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
