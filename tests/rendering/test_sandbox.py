"""Chat templates are programs of strangers: what they may not do, and how they are stopped."""

from __future__ import annotations

import pickle
import time

import pytest

from llamafactory.errors import ConfigError
from llamafactory.rendering.sandbox import ChatTemplate, Refused

MESSAGES = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}


def render(source: str) -> str:
    return ChatTemplate(source, date="26 Jul 2024").render(MESSAGES)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace.__init__.__globals__['os'] }}",
    "{{ (messages | attr('__class__')).__mro__ }}",
    "{{ messages | map(attribute='__class__') | first | attr('__mro__') | list }}",
    "{{ self.__init__.__globals__ }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ lipsum.__globals__ }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ messages.append({}) }}",
    "{{ messages[0].update({}) }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ joiner.__init__.__globals__ }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_way_out_of_the_sandbox(source: str) -> None:
    try:
        text = render(source)
    except ConfigError as error:
        assert "chat template cannot be used" in str(error)
    else:
        assert "class" not in text
        assert "root:" not in text
        assert set(text) <= set("[]()Undefined, ")


BOMBS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(3000) %}{% for b in range(3000) %}{% for c in range(9) %}{% endfor %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ [1] * 10**10 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ (2**60)*(2**60)*(2**60) }}",
    "{{ '%099999999999d' % 1 }}",
    "{{ 'x'.ljust(10**11) }}",
    "{{ 'x'.zfill(10**11) }}",
    "{{ 'x'.center(10**11) }}",
    "{{ '{:>99999999999}'.format(1) }}",
    "{{ 'a' | center(10**10) }}",
    "{{ 'a' | indent(10**10) }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ range(100000) | join('x' * 1000000) }}",
    "{{ ('x' * 1000000).join(range(100000) | map('string') | list) }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 4000000) | list | map('upper') | list | length }}",
    "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s=[1, 2, 3, 4]) %}{% for i in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
]


@pytest.mark.parametrize("source", BOMBS)
def test_a_bomb_ends_in_an_error_at_once(source: str) -> None:
    start = time.process_time()
    with pytest.raises(ConfigError, match=r"chat template cannot be used, because .*name a built-in template"):
        render(source)
    assert time.process_time() - start < 20.0  # left alone, each takes hours or all memory


@pytest.mark.parametrize(
    "source", ["{{ unclosed", "{% for %}", "{% endif %}", "{{ messages[0].content + 1 }}", "{{ 1 // 0 }}"]
)
def test_a_broken_template_is_the_users_error(source: str) -> None:
    with pytest.raises(ConfigError, match="chat template cannot be used"):
        render(source)


def test_a_template_may_refuse_a_conversation() -> None:
    with pytest.raises(Refused, match="only pairs"):
        render("{{ raise_exception('only pairs') }}")


def test_everyday_templates_work_unchanged() -> None:
    source = """{% for message in messages %}
    {%- if loop.first and loop.length == 2 %}[{% endif %}
    {%- generation %}{{ message['content'] | trim }}{% endgeneration %}
    {%- if not loop.last %}{{ ', ' }}{% else %}{{ loop.index0 }}]{% break %}{% endif %}
{%- endfor %}{{ messages | map(attribute='role') | join('/') }}{{ {'城': [1, None]} | tojson }}
{{- strftime_now('%d') }}"""
    assert render(source) == '[hi, yo1]user/assistant{"城": [1, null]}26 Jul 2024'


def test_blocks_swallow_line_breaks_as_in_transformers() -> None:
    assert render("a\n{% if true %}\n  b\n  {% endif %}\nc") == "a\n  b\nc"


def test_a_namespace_keeps_values_through_loops() -> None:
    assert (
        render("{% set n = namespace(c=0) %}{% for m in messages %}{% set n.c = n.c + 1 %}{% endfor %}{{ n.c }}") == "2"
    )


def test_a_template_can_be_sent_to_another_process() -> None:
    again = pickle.loads(pickle.dumps(ChatTemplate("{{ messages[0].content }}{{ strftime_now('') }}", date="d")))
    assert again.render(MESSAGES) == "hid"
