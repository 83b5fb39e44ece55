"""A template ends: in time, and before it fills the memory. What ordinary templates do stays as it is."""

from __future__ import annotations

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
    ],
)
def test_what_would_run_for_ever_is_ended(source: str) -> None:
    template = BoundedSandbox(extensions=["jinja2.ext.loopcontrols"]).from_string(source)
    with pytest.raises(TemplateError, match="takes longer than"):
        render(template, {})


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
