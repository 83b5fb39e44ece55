"""A text of two calls in every format of tool calls, for tests."""

from __future__ import annotations

from typing import Any

KNOWN: dict[str, dict[str, Any]] = {
    "weather": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "time": {},
}
_TAGGED = """Let me see.
<tool_call>
<function=weather>
<parameter=city>
Köln
</parameter>
<parameter=days>
2
</parameter>
</function>
</tool_call>
<tool_call>
<function=time>
</function>
</tool_call>"""
#: Each says "Let me see." where its format can, then calls weather(city="Köln", days=2) and time().
TEXTS = {
    "hermes": 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>\n'
    '<tool_call>\n{"arguments": {}, "name": "time"}\n</tool_call>',
    "granite": 'Let me see.<|tool_call|>[{"name": "weather", "arguments": {"city": "Köln", "days": 2}}, '
    '{"name": "time", "arguments": {}}]',
    "phi4_mini_json": 'Let me see. functools[{"name": "weather", "arguments": {"city": "Köln", "days": 2}},'
    '{"name": "time", "arguments": {}}]',
    "llama3_json": '{"name": "weather", "parameters": {"city": "Köln", "days": 2}}; {"name": "time", "parameters": {}}',
    "mistral": 'Let me see.[TOOL_CALLS]weather[ARGS]{"city": "Köln", "days": 2}[TOOL_CALLS]time[CALL_ID]123[ARGS]{}',
    "pythonic": "Let me see. [weather(city='Köln', days=2), time()]",
    "deepseek_v3": "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    '{"city": "Köln", "days": 2}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜>'
    "<｜tool▁calls▁end｜>",
    "kimi_k2": "Let me see.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
    '<|tool_call_argument_begin|>{"city": "Köln", "days": 2}<|tool_call_end|><|tool_call_begin|>functions.time:1'
    "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
    "openai": "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.weather <|constrain|>json<|message|>{"city": "Köln", "days": 2}<|call|><|start|>assistant'
    " to=functions.time<|channel|>commentary<|message|>",
    "qwen3_coder": _TAGGED,
    "minimax_m2": _TAGGED.replace("tool_call>", "minimax:tool_call>")
    .replace("</function>", "</invoke>")
    .replace("<function=weather>", '<invoke name="weather">')
    .replace("<function=time>", '<invoke name="time">')
    .replace("<parameter=city>", '<parameter name="city">')
    .replace("<parameter=days>", '<parameter name="days">'),
    "glm45": "Let me see.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>time\n</tool_call>",
    "generic": 'Let me see. ```json\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n```\n'
    '{"type": "function", "function": {"name": "time", "parameters": null}}',
}
