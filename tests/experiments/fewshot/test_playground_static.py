"""The playground's page without a server gives the server's numbers."""

import contextlib
import functools
import http.server
import pathlib
import shutil
import threading

import jax
import numpy as np
import pytest

from experiments import common
from experiments.fewshot.playground import models, program, static
from experiments.fewshot.playground.plain import in_plain_operations

RUNTIME = (
    pathlib.Path(__file__).parents[3] / ".venv/onnxruntime-web/node_modules/onnxruntime-web/dist"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


def task(count):
    """Random strokes, as the page gives them to either program."""
    rng = np.random.default_rng(count)
    images = (255 * (rng.random((6, 28, 28)) > 0.8)).astype(np.float32)
    return images[:5] * (np.arange(5) < count)[:, None, None], np.int32(count), images[5]


def answers(untrained):
    answer = program.answer_of({name: each.learner for name, each in untrained.items()})
    params = {name: each.params for name, each in untrained.items()}
    return jax.jit(lambda *inputs: answer(params, *inputs))


@pytest.mark.ci
@pytest.mark.slow
def test_plain_operations_compute_the_same(untrained):
    """And have nothing left of what ONNX has not."""
    traced = jax.make_jaxpr(answers(untrained))(*task(3))
    plain = in_plain_operations(traced)
    found = jax.jit(plain)(*task(3))
    wanted = jax.tree.leaves(answers(untrained)(*task(3)))
    for each, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(each, other, atol=1e-6)
    text = str(jax.make_jaxpr(plain)(*task(3)))
    assert "metajax_" not in text
    assert "scatter-add" not in text


def test_winograd_is_a_convolution(untrained):
    """With 64 features it is taken on a CPU; with the four above it isn't."""
    key = jax.random.key(0)
    model = models.model_of("prototypical", key)
    wide = {"prototypical": models.Trained(model.learner, model.params, [])}
    traced = jax.make_jaxpr(answers(wide))(*task(2))
    assert ("metajax_convolve" in str(traced)) == (jax.default_backend() == "cpu")
    plain = jax.make_jaxpr(in_plain_operations(traced))(*task(2))
    assert "metajax_convolve" not in str(plain)


def test_another_scatter_is_refused():
    traced = jax.make_jaxpr(lambda x: x.at[np.array([0, 0]), np.array([1, 2])].add(1.0))(
        np.zeros((3, 4), np.float32)
    )
    with pytest.raises(NotImplementedError, match="another scatter-add"):
        in_plain_operations(traced)(np.zeros((3, 4), np.float32))


def test_a_missing_runtime_is_named(untrained, tmp_path):
    with pytest.raises(common.RunError, match=r"has no ort\.wasm\.min\.mjs; make"):
        static.write(tmp_path / "site", untrained, {}, tmp_path)
    assert not (tmp_path / "site").exists()


@pytest.mark.slow
def test_onnx_gives_the_numbers_of_jax(untrained):
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    model = static.onnx_of(untrained).SerializeToString()
    session = runtime.InferenceSession(model, options)
    for count in range(2, 6):
        wanted = answers(untrained)(*task(count))
        feed = dict(zip(static.INPUTS, map(np.asarray, task(count)), strict=True))
        found = session.run(sorted(wanted), feed)
        for name, rows in zip(sorted(wanted), found, strict=True):
            np.testing.assert_allclose(rows, wanted[name], atol=1e-4)


@contextlib.contextmanager
def served(folder):
    """A server of files and nothing else."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *arguments: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium isn't installed")
@pytest.mark.skipif(not RUNTIME.exists(), reason="make playground-static gets onnxruntime-web")
def test_the_browser_gives_the_numbers_of_jax(untrained, tmp_path):
    pytest.importorskip("jax2onnx")
    sync_api = pytest.importorskip("playwright.sync_api")
    description = {
        "image": {"side": 21, "width": 2.9},
        "models": [{"name": name, "title": title} for name, title in models.TITLES.items()],
        "facts": "They are not trained.",
    }
    static.write(tmp_path, untrained, description, RUNTIME)
    with served(tmp_path) as address, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("[data-model=prototypical]")
        for count in (2, 5):
            examples, _, query = task(count)
            asked = [examples[:count].reshape(count, -1).tolist(), query.ravel().tolist()]
            found = page.evaluate(
                "async (asked) => (await import('./browser.js')).answer(...asked)", asked
            )
            for name, rows in answers(untrained)(*task(count)).items():
                np.testing.assert_allclose(found[name], rows[:, :count], atol=1e-4)
        browser.close()
