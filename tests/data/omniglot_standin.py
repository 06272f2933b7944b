"""A small stand-in for Omniglot in Lake's layout: seven characters, three drawings each."""

import io
import zipfile

import numpy as np
from PIL import Image

CHARACTERS = (
    ("Alpha", 1),
    ("Alpha", 2),
    ("Beta_(old)", 1),
    ("Beta_(old)", 2),
    ("Beta_(old)", 3),
    ("Aleph", 1),
    ("Aleph", 2),
)


def bits(character, drawing):
    """One drawing as booleans ``[105, 105]``: a stroke that tells character and drawing apart."""
    index = CHARACTERS.index(character)
    paper = np.ones([105, 105], bool)
    paper[10 + 9 * index : 18 + 9 * index, 20 : 60 + 10 * drawing] = False
    return paper


def png(character, drawing):
    file = io.BytesIO()
    Image.fromarray(bits(character, drawing)).convert("1").save(file, "PNG")
    return file.getvalue()


def lake_files():
    for number, character in enumerate(CHARACTERS):
        part = "images_background" if number < 5 else "images_evaluation"
        for drawing in range(3):
            name = f"{character[0]}/character{character[1]:02d}/{number + 1:04d}_{drawing + 1:02d}"
            yield f"{part}/{name}.png", png(character, drawing)


def write_folders(root, files=None):
    for name, content in files or lake_files():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zips(root, files=None):
    files = list(files or lake_files())
    root.mkdir(parents=True, exist_ok=True)
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(root / f"{part}.zip", "w") as archive:
            archive.writestr("__MACOSX/._" + part, b"")
            archive.writestr(f"{part}/", b"")
            for name, content in files[::-1]:  # the order in the archive doesn't matter
                if name.startswith(part):
                    archive.writestr(name, content)
    return root


def expected():
    """What the array must be, computed apart: white paper in, ink = 255 out."""
    classes = []
    for character in CHARACTERS:
        drawings = []
        for drawing in range(3):
            grey = Image.fromarray(np.where(bits(character, drawing), 255, 0).astype(np.uint8))
            drawings.append(255 - np.asarray(grey.resize((28, 28), Image.Resampling.LANCZOS)))
        classes.append(drawings)
    return np.array(classes)


def assert_same_drawings(images):
    assert images.shape == (21, 28, 28)
    for found, wanted in zip(images.reshape(7, 3, 28, 28), expected(), strict=True):
        assert {image.tobytes() for image in found} == {image.tobytes() for image in wanted}
