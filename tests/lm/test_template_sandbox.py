"""Chat templates that loop, grow, or reach for Python's inside are refused, and others aren't."""

import tracemalloc

import pytest

from metajax.lm import _template_sandbox
from metajax.lm._chat_templates import render
from metajax.lm._template_sandbox import size

CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


class Hidden:
    """Something of a caller's that a template gets."""

    _private = "secret"
    shown = "seen"


WITHOUT_END = {
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "nested": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested-filter": "{% for a in range(99999) %}{% for b in range(99999) if false %}"
    "{% endfor %}{% endfor %}",
    "nested-text": "{% for a in 'x' * 9999 %}{% for b in 'x' * 9999 %}{% endfor %}{% endfor %}",
    "output": "{% for a in range(99999) %}{{ 'x' * 999 }}{% endfor %}",
    "fixed-output": "{% for a in range(99999) %}" + "x" * 999 + "{% endfor %}",
    "captured": "{% set s %}{% for a in range(99999) %}" + "x" * 999 + "{% endfor %}{% endset %}",
    "doubling": "{% set n = namespace(s='x') %}{% for i in range(99) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling-set": "{% set n = namespace(s='x') %}{% for i in range(99) %}"
    "{% set s %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = s %}{% endfor %}",
    "doubling-sum": "{% set n = namespace(s='x') %}{% for i in range(99) %}"
    "{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling-lists": "{% set n = namespace(s=[1]) %}{% for i in range(99) %}"
    "{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "doubling-dicts": "{% set n = namespace(s=[1]) %}{% for i in range(99) %}"
    "{% set n.s = {'a': n.s, 'b': n.s} %}{% endfor %}{{ n.s | tojson }}",
    "doubling-replace": "{% set n = namespace(s='x') %}{% for i in range(99) %}"
    "{% set n.s = n.s | replace('x', 'xx') %}{% endfor %}",
    "squares": "{% set n = namespace(s=3) %}{% for i in range(99) %}"
    "{% set n.s = n.s * n.s %}{% endfor %}",
    "recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "recursive-loop": "{% for a in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "times": "{{ 'x' * 10**10 }}",
    "times-left": "{{ 10**10 * [1] }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "percent-star": "{{ '%*d' % (10**10, 1) }}",
    "format-filter": "{{ '%10000000000d' | format(1) }}",
    "format": "{{ '{:>10000000000}'.format(1) }}",
    "format-nested": "{{ '{:>{w}}'.format(1, w=10**10) }}",
    "format-fields": "{{ ('{0}' * 9999).format('x' * 99999) }}",
    "center": "{{ 'x' | center(10**10) }}",
    "center-const": "{{ 'x' | center(10000000000) }}",
    "ljust": "{{ 'x'.ljust(10**10) }}",
    "zfill": "{{ 'x'.zfill(10**10) }}",
    "expandtabs": "{{ '\\t'.expandtabs(10**9) }}",
    "indent": "{{ ('x\\n' * 99999) | indent(99999) }}",
    "tojson": "{{ [1] | tojson(indent=10**10) }}",
    "join": "{{ range(99999) | join('x' * 99999) }}",
    "join-method": "{{ ('x' * 99999).join(range(99999) | map('string')) }}",
    "replace": "{{ ('x' * 99999).replace('x', 'x' * 99999) }}",
    "batch": "{{ [1] | batch(10**10, 'x') | list }}",
    "strftime": "{{ strftime_now('%10000000000Y') }}",
    "slices": "{% set s = 'x' * 999999 %}{% for a in range(99999) %}"
    "{% set t = s[::-1] %}{% endfor %}",
    "search": "{% set s = 'x' * 999999 %}{% for a in range(99999) %}{{ 'y' in s }}{% endfor %}",
    "sums": "{% for a in range(99999) %}{% set t = range(99999) | sum %}{% endfor %}",
}


@pytest.mark.parametrize("name", WITHOUT_END)
def test_a_template_without_end_is_refused(name, monkeypatch):
    monkeypatch.setattr(_template_sandbox, "_WORK", 1_000_000)  # less, for quick tests
    message = r"chat template fails on them: .*(without end|too big|recursion)"
    with pytest.raises(ValueError, match=message):
        render(WITHOUT_END[name], CHAT)


@pytest.mark.parametrize("name", ["captured", "doubling", "doubling-set", "squares", "replace"])
def test_it_is_refused_before_it_takes_memory(name):
    tracemalloc.start()
    with pytest.raises(ValueError, match="without end"):
        render(WITHOUT_END[name], CHAT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__ is defined }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ [''] | map(attribute='__class__') | list }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ '{0._private}'.format(hidden) }}",
        "{{ '{x.__class__}'.format_map({'x': ''}) }}",
        "{{ hidden._private }}",
        "{{ hidden['_private'] }}",
        "{{ messages.__init__ }}",
        "{{ messages[0].__class__.__mro__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% macro f() %}{% endmacro %}{{ f.__call__ }}",
        "{% for turn in messages %}{{ loop._iterator }}{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
    ],
)
def test_attributes_of_python_are_refused(source):
    with pytest.raises(ValueError, match="unsafe"):
        render(source, CHAT, hidden=Hidden())


def test_what_a_chat_has_is_not_an_attribute():
    chat = [{"role": "user", "_private": "its own"}]
    source = "{{ messages[0]._private }} {{ messages[0]['_private'] }} {{ hidden.shown }}"
    assert render(source, chat, hidden=Hidden()) == "its own its own seen"


def test_long_chats_are_no_loops_without_end():
    source = """
{%- for turn in messages %}
{%- if loop.index0 == messages | length - 1 %}last: {% endif %}
{%- set parts = turn.content.split('</think>') %}
{{- '<|' ~ turn.role ~ '|>' + parts[-1].strip() | replace('a', 'bb') + '\\n' }}
{%- endfor %}{{ messages[1:] | tojson(indent=2) }}"""
    chat = [
        {"role": "user", "content": f"{n} 1700000000 </think> " + "a" * 400} for n in range(2000)
    ]
    text = render(source, chat)
    assert text.count("<|user|>") == 2000
    assert len(text) > 2_400_000
    one = [{"role": "user", "content": "a" * 3_000_000}]
    assert len(render(source, one)) > 6_000_000


def test_numbers_are_no_sizes():
    chat = [{"role": "user", "content": "x", "at": 1_700_000_000_000}]
    source = (
        "{{ messages[0].at | string }} {{ messages[0].at | tojson }}"
        " {{ missing | default(10**12) }} {{ dict(at=10**12).at }} {{ messages[0].at // 1000 * 2 }}"
        " {{ '%d' % 10**12 }}"
        " {{ '{}'.format(10**12) }} {{ 7 * 'ab' }} {{ [1] * 2 }}"
    )
    assert render(source, chat).split() == [
        *("1700000000000", "1700000000000", "1000000000000", "1000000000000", "3400000000"),
        *("1000000000000", "1000000000000", "ab" * 7, "[1,", "1]"),
    ]


def test_size_counts_what_is_inside_each_time():
    inner = ["ab", {"c": 1}]
    assert size(inner) == 3 * 8 + 2 + 1
    assert size([inner, inner]) == 2 * 8 + 2 * size(inner)
    deep = [1]
    for _ in range(99):
        deep = [deep, deep]
    assert 1000 < size(deep, 1000) < 1020
