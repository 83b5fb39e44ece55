"""Chat templates: the same text as transformers renders, and nothing a caller or a template can break out of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.checkpoint import Checkpoint
from octavo.config import ModelConfig
from octavo.engine.chat_template import ChatTemplate
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import CheckpointError, ConfigError, InvalidRequest

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi, <b>you</b> & \"all\" 😀 'there'"},
    {"role": "assistant", "content": "Hello! "},
    {"role": "user", "content": "  And?\n"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "ünïcode <b>",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]

# Each uses what templates on the hub use.
TEMPLATES = {
    "blocks": """{%- for message in messages %}
    {%- if message['role'] == 'system' -%}
        {{ '<<' + message['content'] | trim + '>>' }}
    {%- else %}
{{ message.role | upper }}: {{ message['content'] }}
    {%- endif %}
{% endfor %}
{% if add_generation_prompt %}
ASSISTANT:
{%- endif %}""",
    "loop controls": "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}"
    "{{ m.content }}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "tools": "{{ bos_token }}{% if tools %}{% for t in tools %}{{ t | tojson }}{{ t | tojson(indent=4) }}{% endfor %}"
    "{% else %}none{% endif %}{{ eos_token }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}"
    "{% endfor %}{{ ns.n }}{{ messages[::-1][0].content.split('?')[0].strip() }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "macro": "{% macro say(m) %}[{{ m.role }}|{{ m.content }}]{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{% endfor %}",
    "extra variables": "{{ 'deep' if enable_thinking is defined and enable_thinking else 'shallow' }}",
}


@pytest.fixture(scope="session")
def smol(smollm2: Checkpoint) -> Tokenizer:
    return Tokenizer.from_checkpoint(smollm2)


def theirs(source: str, smol: Tokenizer, messages: list[dict[str, Any]], **options: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    options = {"bos_token": smol.bos_token, "eos_token": smol.eos_token, **options}
    rendered, _ = render_jinja_template(conversations=[messages], chat_template=source, **options)
    return str(rendered[0])


@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": True, "tools": TOOLS, "enable_thinking": True}])
@pytest.mark.parametrize("name", [*TEMPLATES, "smollm2"])
def test_the_same_text_as_transformers(name: str, smol: Tokenizer, options: dict[str, Any]) -> None:
    source = smol.chat_template if name == "smollm2" else TEMPLATES[name]
    assert source is not None
    ours = ChatTemplate(source, smol).render(CHAT, **{"add_generation_prompt": False, **options})
    assert ours == theirs(source, smol, CHAT, **options)


@pytest.mark.parametrize("name", ["blocks", "macro", "smollm2"])
@pytest.mark.parametrize("content", ["The answer is", "The answer is ", "  x\n"])
def test_continuing_the_last_message_as_transformers_does(name: str, content: str, smol: Tokenizer) -> None:
    source = smol.chat_template if name == "smollm2" else TEMPLATES[name]
    assert source is not None
    messages = [*CHAT, {"role": "assistant", "content": content}]
    ours = ChatTemplate(source, smol).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert ours == theirs(source, smol, messages, continue_final_message=True)
    assert ours.endswith(content)


def test_a_template_that_strips_messages_is_continued_without_trailing_space(smol: Tokenizer) -> None:
    template = ChatTemplate("{% for m in messages %}[{{ m.content | trim }}] {% endfor %}", smol)
    messages = [{"role": "assistant", "content": " so "}]
    assert template.render(messages, add_generation_prompt=False, continue_final_message=True) == "[so"


def test_parts_can_be_continued(smol: Tokenizer) -> None:
    template = ChatTemplate("{% for p in messages[-1].content %}{{ p.text }}{% endfor %}</s>", smol)
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert template.render(messages, add_generation_prompt=False, continue_final_message=True) == "ab"


@pytest.mark.parametrize("messages", [[], [{"role": "assistant"}], [{"role": "assistant", "content": None}]])
def test_what_cannot_be_continued(smol: Tokenizer, messages: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate("x", smol).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_a_template_that_hides_the_last_message_cannot_continue_it(smol: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="does not end with the last message"):
        ChatTemplate("x", smol).render(CHAT, add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(InvalidRequest, match="exclude each other"):
        ChatTemplate("x", smol).render(CHAT, continue_final_message=True)


HOSTILE = [
    "{{ 7*7 }}",
    "{% raw %}{{ x }}",
    "{{ ''.__class__ }}",
    "{#",
    "<script>&amp;",
    "%s{}$\\n\0",
    "\ue000continue here\ue001",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_users_write_is_only_text(smol: Tokenizer, text: str) -> None:
    messages = [{"role": "user", "content": text}]
    assert f"<|im_start|>user\n{text}<|im_end|>" in ChatTemplate(smol.chat_template, smol).render(messages)
    assert json.dumps(text, ensure_ascii=False) in ChatTemplate("{{ messages | tojson }}", smol).render(messages)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{% set _ = messages[0].update({'role': 'x'}) %}",
        "{{ raise_exception.__globals__.x }}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('Roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[99].content }}",
        "{{ 1 / 0 }}",
        "{{ {}['x'].y }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ strftime_now(3) }}",
        "{{ messages | tojson(indent=10**9) }}",
        "{{ 'x' * 10**10 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox_and_faults_are_the_requests(smol: Tokenizer, source: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate(source, smol).render(CHAT)
    assert caught.value.param == "messages"
    assert "Traceback" not in caught.value.message


def test_what_a_template_complains_of_reaches_the_caller(smol: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="Roles must alternate"):
        ChatTemplate("{{ raise_exception('Roles must alternate') }}", smol).render(CHAT)


def test_callers_variables_cannot_replace_the_messages(smol: Tokenizer) -> None:
    hostile: dict[str, Any] = {"self": 1, "loop": 2, "range": 3, "raise_exception": 4}
    assert ChatTemplate("{{ messages | length }}", smol).render(CHAT, **hostile) == "4"


def test_a_model_without_a_template_says_what_to_do(smol: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"/v1/completions.*--chat-template"):
        ChatTemplate(None, smol).render(CHAT)


def test_the_time_is_that_of_the_clock(smol: Tokenizer) -> None:
    assert len(ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", smol).render(CHAT)) == 10


@pytest.mark.parametrize("source", ["{% if %}", "{{ x | nosuchfilter }}", "{% endfor %}", "{{ " + "(" * 5000])
def test_a_template_that_is_no_jinja(smol: Tokenizer, source: str) -> None:
    with pytest.raises(CheckpointError, match="chat template"):
        ChatTemplate(source, smol)


def test_a_template_from_a_file(tmp_path: Path, smol: Tokenizer) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("from {{ messages | length }}")
    assert ChatTemplate.for_model(ModelConfig(chat_template=str(file)), smol).render(CHAT) == "from 4"
    assert "Be brief." in ChatTemplate.for_model(ModelConfig(), smol).render(CHAT)
    with pytest.raises(ConfigError, match=r"--chat-template .*absent.*cannot be read"):
        ChatTemplate.for_model(ModelConfig(chat_template=str(tmp_path / "absent")), smol)
