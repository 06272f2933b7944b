"""The Chinese pages say what the English ones say: the same code, and headings alike."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
CHINESE = ROOT / "docs" / "zh"
PAIRS = {
    "README.md": "README.zh.md",
    "docs/start.md": "docs/zh/start.md",
    **{
        f"docs/tutorials/{page.name}": f"docs/zh/tutorials/{page.name}"
        for page in (ROOT / "docs" / "tutorials").glob("*.md")
    },
}


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(page):
    """The code of a page: of blocks, and of the cells of a tutorial."""
    found = re.findall(r"^```(.*?)^```", page, re.DOTALL | re.M)
    return [block for block in found if not block.startswith(("{include}", "{toctree}"))]


def levels(page):
    """The headings' levels, outside of code."""
    return [
        len(marks)
        for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.M)
    ]


@pytest.mark.parametrize(("english", "chinese"), PAIRS.items())
def test_code_and_headings_are_the_same(english, chinese):
    assert blocks(text(chinese)) == blocks(text(english))
    assert levels(text(chinese)) == levels(text(english))


def test_a_difference_is_seen():
    page = "# a\n```python\nx = 1\n```\n## b\n"
    assert blocks(page) != blocks(page.replace("1", "2"))
    assert levels(page) != levels(page.replace("## b", "b"))
    assert levels(page) == [1, 2]


def test_every_english_page_of_the_chinese_part_has_a_chinese_one():
    written = {page.relative_to(ROOT).as_posix() for page in CHINESE.rglob("*.md")}
    assert written == set(PAIRS.values()) - {"README.zh.md"} | {"docs/zh/index.md"}


def test_the_fields_own_words_are_used():
    pages = "".join(text(chinese) for chinese in PAIRS.values())
    for word in ("元学习", "内循环", "外循环", "支持集", "查询集", "原型网络", "自我进化"):
        assert word in pages, word
