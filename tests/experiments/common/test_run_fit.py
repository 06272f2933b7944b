"""The training loop: metrics, stopping, and going on bit for bit."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_trainer import ToyConfig, ToyTrainer, toy_state, toy_trainer

import metajax
from experiments import common
from experiments.common.disk import write_digests


def fit(config, trainer=None, **options):
    trainer = trainer or toy_trainer()
    run = common.open_run("toy", config)
    return common.fit(run, trainer, toy_state(config.seed), steps=config.steps, **options)


def assert_same(fitted, expected):
    for ours, theirs in zip(
        jax.tree.leaves(fitted.state._replace(key=0)),
        jax.tree.leaves(expected.state._replace(key=0)),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    drop_time = lambda lines: [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    assert drop_time(fitted.metrics) == drop_time(expected.metrics)


def interrupting(number, *, at):
    """A trainer during whose dispatch the process gets a signal."""
    trainer = toy_trainer()

    def run(state, steps):
        if int(state.step) == at:
            os.kill(os.getpid(), number)
        return trainer.run(state, steps)

    return ToyTrainer(run)


def test_one_line_a_dispatch_and_a_shorter_last_one(tmp_path):
    calls = []
    trainer = toy_trainer()

    def run(state, steps):
        calls.append(steps)
        return trainer.run(state, steps)

    fitted = fit(ToyConfig(out=tmp_path / "a", steps=25), ToyTrainer(run))
    assert calls == [10, 10, 5]
    assert [line["step"] for line in fitted.metrics] == [10, 20, 25]
    assert fitted.metrics == common.read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert fitted.seconds == pytest.approx(sum(line["seconds"] for line in fitted.metrics))
    expected = toy_trainer().run(toy_state(), 10)[1]["loss"].mean()
    assert fitted.metrics[0]["loss"] == pytest.approx(float(expected), rel=1e-6)
    assert sorted(p.name for p in (tmp_path / "a" / "checkpoints").iterdir()) == ["20", "25"]


def test_validation(tmp_path):
    fitted = fit(
        ToyConfig(out=tmp_path / "a", steps=50),
        validate=lambda params: {"bias": float(params["b"])},
        validate_every=20,
    )
    scored = [line["step"] for line in fitted.metrics if "validation_bias" in line]
    assert scored == [20, 40, 50]
    assert fitted.metrics[-1]["validation_bias"] == float(fitted.state.params["b"])


def test_what_a_step_gets_through_is_counted_per_second(tmp_path):
    fitted = fit(ToyConfig(out=tmp_path / "a", steps=25), per_step={"tokens": 100})
    for line, steps in zip(fitted.metrics, (10, 10, 5), strict=True):
        assert line["tokens_per_second"] == pytest.approx(100 * steps / line["seconds"])


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, number, error, capsys):
    expected = fit(ToyConfig(out=tmp_path / "whole", steps=60))
    config = ToyConfig(out=tmp_path / "halves", steps=60)
    before = signal.getsignal(number)
    with pytest.raises(error):
        fit(config, interrupting(number, at=30))
    assert signal.getsignal(number) is before
    assert "--resume --out" in capsys.readouterr().err
    assert common.read_metrics(tmp_path / "halves" / "metrics.jsonl")[-1]["step"] == 40
    resumed = ToyConfig(out=tmp_path / "halves", steps=60, resume=True)
    assert_same(fit(resumed), expected)
    assert_same(fit(resumed), expected)  # and a finished run has nothing left to do


def test_a_run_that_was_killed_while_its_first_checkpoint_was_written_begins_again(tmp_path):
    expected = fit(ToyConfig(out=tmp_path / "whole", steps=60))
    with pytest.raises(KeyboardInterrupt):
        fit(ToyConfig(out=tmp_path / "killed", steps=60), interrupting(signal.SIGINT, at=0))
    checkpoints = tmp_path / "killed" / "checkpoints"
    for path in checkpoints.iterdir():
        if path.name != "0":
            shutil.rmtree(path)
    (checkpoints / "0").rename(checkpoints / "unfinished-0")
    resumed = ToyConfig(out=tmp_path / "killed", steps=60, resume=True)
    with pytest.warns(UserWarning, match="has no checkpoint"):
        assert_same(fit(resumed), expected)
    assert_same(fit(resumed), expected)


class Growing(ToyConfig):
    """A config whose schedule doesn't depend on the number of steps."""

    def goes_on_from(self, steps):
        return steps is not None and steps <= (self.steps or 0)


def test_a_finished_run_may_be_given_more_steps_where_the_config_says_so(tmp_path):
    expected = fit(Growing(out=tmp_path / "whole", steps=60))
    fit(Growing(out=tmp_path / "parts", steps=20))
    assert_same(fit(Growing(out=tmp_path / "parts", steps=60, resume=True)), expected)
    saved = json.loads((tmp_path / "parts" / "config.json").read_text())
    assert saved["config"]["steps"] == 60
    with pytest.raises(common.RunError, match="steps was 60 and is now 40"):
        fit(Growing(out=tmp_path / "parts", steps=40, resume=True))


@pytest.mark.ci
@pytest.mark.slow
def test_a_killed_run_goes_on_in_a_new_process_bit_for_bit(tmp_path):
    script = Path(__file__).with_name("toy_trainer.py")
    command = [sys.executable, str(script), "--out", str(tmp_path / "killed")]
    metrics = tmp_path / "killed" / "metrics.jsonl"
    resumed = ToyConfig(out=tmp_path / "killed", resume=True)

    def started(*options, lines):
        process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(common.read_metrics(metrics)) < lines:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    process = started(lines=3)
    try:
        with pytest.raises(
            common.RunError, match=f"another process is using .*process {process.pid}"
        ):
            fit(resumed)
        process.terminate()
        assert process.wait() == 143
    finally:
        process.kill()
        process.wait()
    last = common.read_metrics(metrics)[-1]["step"]
    assert 30 <= last < 200
    assert (tmp_path / "killed" / "checkpoints" / str(last)).exists(), "it stopped with one"
    process = started("--resume", lines=last // 10 + 3)
    process.kill()
    process.wait()
    assert common.read_metrics(metrics)[-1]["step"] < 200

    expected = fit(ToyConfig(out=tmp_path / "whole"))
    assert_same(fit(resumed), expected)


def test_of_two_runs_that_found_the_folder_empty_the_second_is_refused(tmp_path):
    config = ToyConfig(out=tmp_path / "a", steps=20)
    second = common.open_run("toy", config)
    fit(config)
    before = (tmp_path / "a" / "metrics.jsonl").read_text()
    with pytest.raises(common.RunError, match="another process has trained in"):
        common.fit(second, toy_trainer(), toy_state(), steps=20)
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == before


def test_a_run_folder_that_is_removed_is_an_error_and_is_not_made_again(tmp_path):
    trainer = toy_trainer()

    def run(state, steps):
        if int(state.step) == 30:
            shutil.rmtree(tmp_path / "a")
        return trainer.run(state, steps)

    with pytest.raises(common.RunError, match=r"metrics\.jsonl.*Was the folder removed"):
        fit(ToyConfig(out=tmp_path / "a"), ToyTrainer(run))
    assert not (tmp_path / "a").exists()


def scored(name, scores, seen=None):
    """A validation whose n-th scores are given; it notes the parameters."""
    waiting = iter(scores)

    def validate(params):
        if seen is not None:
            seen.append(jax.device_get(params))
        return {name: next(waiting), "other": 0.0}

    return {"validate": validate, "validate_every": 10}


@pytest.mark.parametrize(
    ("name", "scores", "best"),
    [
        ("accuracy", [0.5, 0.7, 0.7, 0.6, float("nan")], 1),  # of equals the first
        ("loss", [3.0, 2.0, 2.5, 1.0, 1.5], 3),
        ("loss", [3.0, 2.0, 1.5, 1.2, 1.1], 4),
    ],
)
def test_the_best_parameters_by_validation_are_kept(tmp_path, name, scores, best):
    config, seen = ToyConfig(out=tmp_path / "a", steps=50), []
    fit(config, **scored(name, scores, seen))
    found = common.best_params(common.Run("toy", tmp_path / "a", config), toy_state().params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), seen[best])


def test_a_resumed_run_keeps_the_best_of_its_first_part(tmp_path, monkeypatch):
    config, seen = ToyConfig(out=tmp_path / "a", steps=60), []
    with pytest.raises(KeyboardInterrupt):
        fit(config, interrupting(signal.SIGINT, at=20), **scored("loss", [3, 1, 2], seen))
    resumed = ToyConfig(out=tmp_path / "a", steps=60, resume=True)
    fit(resumed, **scored("loss", [2, 1, 2]))
    run = common.open_run("toy", resumed)
    found = common.best_params(run, toy_state().params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), seen[1])
    with pytest.raises(common.RunError, match="another model"):
        common.best_params(run, toy_state(size=4).params)


def test_where_the_best_parameters_are_damaged_training_goes_on(tmp_path):
    config = ToyConfig(out=tmp_path / "a", steps=60)
    with pytest.raises(KeyboardInterrupt):
        fit(config, interrupting(signal.SIGINT, at=20), **scored("loss", [3, 1, 2]))
    for path in (tmp_path / "a" / "best").glob("*/SHA256SUMS"):
        path.unlink()
    seen = []
    with pytest.warns(UserWarning, match="cannot be read|best parameters until here are lost"):
        fit(ToyConfig(out=tmp_path / "a", steps=60, resume=True), **scored("loss", [2, 1, 2], seen))
    found = common.best_params(common.Run("toy", tmp_path / "a", config), toy_state().params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), seen[1])


def test_without_a_validation_there_is_no_best(tmp_path):
    fit(ToyConfig(out=tmp_path / "a", steps=20), **scored("score", [1.0, 2.0]))
    run = common.Run("toy", tmp_path / "a", ToyConfig())
    with pytest.raises(common.RunError, match=r"best holds no parameters.*validate"):
        common.best_params(run, toy_state().params)
    with pytest.raises(common.RunError, match="best holds no parameters"):
        common.best_params(run._replace(path=tmp_path), toy_state().params)


def test_killed_before_the_first_checkpoint(tmp_path):
    config = ToyConfig(out=tmp_path / "a", resume=True)
    common.create(common.Run("toy", tmp_path / "a", config))
    with pytest.warns(UserWarning, match=r"a/checkpoints has no checkpoint, so the run starts"):
        assert fit(config).metrics[0]["step"] == 10


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    """Also where its arrays have the same shapes."""
    for name, seed in (("a", 0), ("b", 1)):
        fit(ToyConfig(out=tmp_path / name, steps=20, seed=seed))
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "20")
    foreign = tmp_path / "b" / "checkpoints" / "20"
    shutil.copytree(foreign, tmp_path / "a" / "checkpoints" / "20")
    again = ToyConfig(out=tmp_path / "a", steps=20, resume=True)
    with pytest.raises(common.RunError, match=r"a/checkpoints/20 is of another run.*\"seed\": 1"):
        fit(again)
    # A run has as many steps as it is asked for; its checkpoints are the same.
    shutil.rmtree(tmp_path / "b")
    fit(Growing(out=tmp_path / "b", steps=20))
    fit(Growing(out=tmp_path / "b", steps=30, resume=True))


def test_lines_of_metrics_that_are_lost_are_said_at_resume(tmp_path):
    fit(ToyConfig(out=tmp_path / "a", steps=20))
    (tmp_path / "a" / "metrics.jsonl").unlink()
    with pytest.warns(UserWarning, match=r"metrics.jsonl isn't what was written up to step 20"):
        fit(ToyConfig(out=tmp_path / "a", steps=20, resume=True))


def test_a_checkpoint_that_says_nothing_of_metrics_is_taken_with_a_word(tmp_path):
    """As an earlier version wrote it."""
    fit(ToyConfig(out=tmp_path / "a", steps=20))
    checkpoint = tmp_path / "a" / "checkpoints" / "20"
    note = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
    del note["metrics"]
    (checkpoint / "run.json").write_text(json.dumps(note), encoding="utf-8")
    write_digests(checkpoint)
    with pytest.warns(UserWarning, match="checkpoints/20 is of another version of metajax"):
        fit(ToyConfig(out=tmp_path / "a", steps=20, resume=True))


@pytest.mark.parametrize("saved", [False, True])
def test_killed_between_metrics_and_checkpoint(tmp_path, monkeypatch, saved):
    expected = fit(ToyConfig(out=tmp_path / "whole", steps=60))
    save = common.Checkpoints.save

    def killed(self, step, state):
        if step != 40 or saved:
            save(self, step, state)
        if step == 40:
            raise MemoryError

    monkeypatch.setattr(common.Checkpoints, "save", killed)
    with pytest.raises(MemoryError):
        fit(ToyConfig(out=tmp_path / "a", steps=60))
    monkeypatch.undo()
    assert_same(fit(ToyConfig(out=tmp_path / "a", steps=60, resume=True)), expected)


def test_nan_loss_stops_and_names_the_last_good_checkpoint(tmp_path):
    config = ToyConfig(out=tmp_path / "a")
    with pytest.raises(common.NonFiniteError) as error:
        fit(config, toy_trainer(bad_loss_at=57))
    good = tmp_path / "a" / "checkpoints" / "40"
    message = str(error.value)
    assert "step 57: loss is nan" in message
    assert str(good) in message
    assert good.exists()
    with common.Checkpoints(good.parent) as checkpoints:
        state, step = checkpoints.restore(toy_state())
    assert step == 40
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert common.read_metrics(tmp_path / "a" / "metrics.jsonl")[-1]["step"] == 50


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    # The loss of step 20 is of the parameters before its update, so all losses are finite.
    with pytest.raises(common.NonFiniteError, match=r"step 20.*\['b'\].*step 0"):
        fit(ToyConfig(out=tmp_path / "a"), toy_trainer(bad_update_at=20))
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == ["0"]


def test_resume_from_another_models_checkpoint(tmp_path):
    fit(ToyConfig(out=tmp_path / "a", steps=20))
    config = ToyConfig(out=tmp_path / "a", steps=20, resume=True)
    before = (tmp_path / "a" / "metrics.jsonl").read_text()
    with pytest.raises(common.RunError, match="another model or optimizer"):
        common.fit(common.open_run("toy", config), toy_trainer(), toy_state(size=9), steps=20)
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == before


def make_trainer(policy, bad):
    """One of metajax's own; the meta-steps of ``bad``, counted from 0, have a loss of NaN."""

    def learner(step):
        reptile = metajax.reptile(lambda p, c: (p["w"] - c) ** 2, optax.sgd(0.1), steps=1)

        def gradient(params, episode):
            update, metrics = reptile.gradient(params, episode)
            poison = jnp.where(jnp.isin(step, jnp.array(bad)), jnp.nan, 0)
            return update, {"loss": metrics["loss"] + poison}

        return reptile._replace(gradient=gradient)

    sample = lambda key: metajax.Episode(jax.random.normal(key), None)
    return metajax.meta_trainer(learner, optax.adam(0.1), sample, meta_batch=2, non_finite=policy)


def fit_own(config, trainer):
    run = common.open_run("toy", config)
    state = trainer.init({"w": jnp.ones(())}, jax.random.key(0))
    return common.fit(run, trainer, state, steps=config.steps)


@pytest.mark.parametrize("policy", ["skip", "clip"])
def test_steps_that_are_not_finite_are_counted_where_the_trainer_has_a_policy(tmp_path, policy):
    fitted = fit_own(ToyConfig(out=tmp_path / "a", steps=30), make_trainer(policy, [3, 11, 12]))
    counts = [2, 4, 0] if policy == "skip" else [1, 2, 0]  # tasks, or numbers
    assert [line["non_finite"] for line in fitted.metrics] == counts
    assert [line["undone"] for line in fitted.metrics] == (
        [1, 2, 0] if policy == "skip" else [0] * 3
    )
    assert all(np.isfinite(line["loss"]) for line in fitted.metrics)
    assert common.read_metrics(tmp_path / "a" / "metrics.jsonl") == fitted.metrics


def test_a_policy_that_passes_over_everything_ends_the_run(tmp_path, monkeypatch):
    # By its module: experiments.common.fit is the function of that name.
    monkeypatch.setattr(sys.modules["experiments.common.fit"], "BAD_IN_A_ROW", 12)
    trainer = make_trainer("skip", [*range(5, 9), *range(15, 40)])
    with pytest.raises(common.NonFiniteError, match=r"step 27: so many meta-steps in a row.*: 12"):
        fit_own(ToyConfig(out=tmp_path / "a", steps=40), trainer)


@pytest.mark.slow
def test_the_last_good_state_becomes_a_checkpoint(tmp_path):
    config = ToyConfig(out=tmp_path / "a", steps=40)
    with pytest.raises(
        common.NonFiniteError, match=r"step 27: .*checkpoint of step 26: .*26"
    ) as error:
        fit_own(config, make_trainer("raise", [26]))
    assert int(error.value.state.step) == 26
    resumed = fit_own(dataclasses.replace(config, resume=True), make_trainer("skip", [26]))
    expected = fit_own(ToyConfig(out=tmp_path / "b", steps=40), make_trainer("skip", [26]))
    for ours, theirs in zip(
        jax.tree.leaves(resumed.state[:2]), jax.tree.leaves(expected.state[:2]), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
