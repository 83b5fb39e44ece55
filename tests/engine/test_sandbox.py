"""A template ends: in time, and before it fills the memory. What ordinary templates do stays as it is."""

from __future__ import annotations

import time

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.engine import sandbox
from octavo.engine.sandbox import BoundedSandbox, render

LONG = "x" * 1000


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_PROCESSOR_SECONDS", 0.2)
    monkeypatch.setattr(sandbox, "_LONGEST_TEXT", 100_000)


LOOP = "{% for i in range(99999) %}"


@pytest.mark.parametrize(
    "source",
    [
        LOOP * 3 + "{% endfor %}" * 3,
        LOOP + LOOP + "{% continue %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for n in [60] recursive %}{% if n %}{{ loop([n - 1]) }}{{ loop([n - 1]) }}{% endif %}{% endfor %}",
        "{% set octavo_budget = 1 %}" + LOOP * 2 + "{% endfor %}" * 2,
        "{% set r = range(9999)|list %}{% for i in range(99999) if i in r and i < 0 %}x{% endfor %}",
        "{% set r = range(9999)|list %}{% for i in range(99999) if (r|sort)[0] %}x{% endfor %}",
        "{% set r = range(9999)|list %}{{ range(99999)|reject('in', r)|list|length }}",
        "{% set r = range(99999)|list %}{{ range(99)|map('string')|map('replace', 'x', 'y')|list|length }}"
        + "{% set x = r|sort|length %}" * 1000,
        "{% set r = range(99999)|list %}" + "{% set x = -1 in r %}" * 1000,
        "{% set r = range(99999)|list %}" + "{% set x = r[1:] %}" * 5000,
    ],
)
def test_what_would_run_for_ever_is_ended(source: str) -> None:
    template = BoundedSandbox(extensions=["jinja2.ext.loopcontrols"]).from_string(source)
    with pytest.raises(TemplateError, match="takes longer than"):
        render(template, {})


def test_the_time_is_seen_after_each_slow_call() -> None:
    source = "{% set r = range(99999)|list %}{% for i in range(200) %}{% set x = (r * 2)|sort|length %}{% endfor %}"
    template, began = BoundedSandbox().from_string(source), time.thread_time()
    with pytest.raises(TemplateError, match="takes longer than"):
        render(template, {})
    assert time.thread_time() - began < 1.0, "all of these calls take longer"


def test_lists_are_summed_in_linear_time() -> None:
    source = "{{ ([[1] * 50] * 5000)|sum(start=[])|length }}{{ [{'a': [2]}]|sum('a', [1]) }}{{ [1, 2.5]|sum }}"
    assert render(BoundedSandbox().from_string(source), {}) == "250000[1, 2]3.5"
    template, began = BoundedSandbox().from_string("{{ ([[1] * 5000] * 5000)|sum(start=[]) }}"), time.thread_time()
    with pytest.raises(TemplateError, match="more than 1048576 elements"):
        render(template, {})
    assert time.thread_time() - began < 0.5


def test_numbers_that_are_only_shown_may_be_large() -> None:
    source = "{% macro m(n) %}{{ n|string }}{% endmacro %}{{ m(1700000000) }} {{ '%d' % 1700000000 }}"
    assert render(BoundedSandbox().from_string(source), {}) == "1700000000 1700000000"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(200) %}{{ long }}{% endfor %}",
        "{% for i in range(200) %}" + LONG + "{% endfor %}",
        "{% set x %}{% for i in range(200) %}{{ long }}{% endfor %}{% endset %}",
        "{% macro f() %}" + LONG + "{% endmacro %}{% for i in range(200) %}{% set x = f() %}{% endfor %}",
        "{% set n = namespace(x=long) %}{% for i in range(50) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x=long) %}{% for i in range(50) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(50) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{{ 'x' * 10**9 }}",
        "{{ 10**9 * [1] }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set n = namespace(x=9) %}{% for i in range(50) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 'x' | center(10**9) }}",
        "{{ 'x' | indent(width=10**9, first=true) }}",
        "{{ 'x'.ljust(10**9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10**9) }}",
        "{{ '%300000000d'|format(1) }}",
        "{% if '%300000000d'|format(1) %}{% endif %}",
        "{{ '%*d'|format(10**9, 1) }}",
        "{{ ('{0:9999}' * 100).format(1)|length }}",
        "{{ ('{0}' * 200).format(long)|length }}",
        "{{ '%(a)s%(a)s' % {'a': long * 99} }}",
        "{{ '" + "9" * 5000 + "' % 1 }}",
        "{{ [[1]]|sum(start=()) }}",
        "{{ lipsum(n=1000) }}",
    ],
)
def test_what_would_fill_the_memory_is_refused(source: str) -> None:
    with pytest.raises(TemplateError):
        render(BoundedSandbox().from_string(source), {"long": LONG})


@pytest.mark.parametrize(
    "source",
    [
        "{{ none }}{{ absent }}{{ 1.5 }}{{ [1, 'a'] }}{{ true }}{{ 'a' ~ 1 ~ none }}{{ {} ~ absent }}",
        "{{ 3 + 4 * 2 ** 3 % 5 }}{{ 'a' + 'b' * 3 }}{{ [1] + [2] }}{{ '%s-%03d' % ('x', 7) }}{{ '{:>4}'.format(1) }}",
        "{% for a, b in {'x': 1, 'y': 2}.items() %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ a }}{{ b }}"
        "{% else %}none{% endfor %}{% for i in [] %}x{% else %}empty{% endfor %}",
        "{% for n in [[[], []], []] recursive %}<{{ loop.depth }}{{ loop(n) }}>{% endfor %}",
        "{% macro m(x, y='d') %}[{{ x }}{{ y }}{{ caller() if caller }}]{% endmacro %}{{ m(1) }}"
        "{% call m(2, y='e') %}inner{% endcall %}",
        "{% for i in range(9) if i is odd %}{{ i | string | center(5) }}{% endfor %}",
        "{% filter upper %}a{% for i in range(2) %}b{% endfor %}{% endfilter %}",
        "{% set ns = namespace(t='') %}{% for i in 'abc' %}{% set ns.t = ns.t + i %}{% endfor %}{{ ns.t | tojson }}",
        "{{ ['b', 'a'] | sort | join(',') }}{{ [{'a': 1}] | map(attribute='a') | list }}",
        "{{ 'x' | indent(2, first=true) }}{{ 'abc' | replace('b', 'x') }}{{ 'a b'.split() }}{{ range(3) | list }}",
    ],
)
def test_ordinary_templates_give_what_jinja_gives(source: str) -> None:
    expected = ImmutableSandboxedEnvironment().from_string(source).render()
    assert render(BoundedSandbox().from_string(source), {}) == expected
