"""Bad inputs 57 to 72 and 76: what octavo does not have is refused clearly and hurts nobody; lives of streams."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from batch_kills import upload
from qa_server import QaServer, refused, serve, until
from tiny_model import NAME

pytestmark = pytest.mark.qa

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


# ---------------------------------------------------------------------- F. tools and structured output


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([TOOL] * 10_000, "tools"),
        ([tool(description="x" * 2**20)], "tools"),
        ([TOOL, TOOL], "tools[1].function.name"),
        ([tool(name="a b\n")], "tools[0].function.name"),
    ],
    ids=["many", "long", "twice", "name"],
)
def test_row_57_tools(server: QaServer, tools: Any, param: str) -> None:
    reply = server.chat(tools=tools)
    assert (reply.status, reply.error["param"]) == (400, param)


@pytest.mark.parametrize("parameters", [3, {"type": "string", "pattern": "("}, {"type": "foo"}, {"type": ["object"]}])
def test_row_58_parameters_of_tools(server: QaServer, parameters: Any) -> None:
    reply = server.chat(tools=[tool(parameters=parameters)])
    assert (reply.status, reply.error["param"]) == (400, "tools[0].function.parameters")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "nobody"}}], ids=str)
def test_row_59_a_choice_among_no_tools(server: QaServer, choice: Any) -> None:
    refused(server.chat(tool_choice=choice), param="tool_choice", code="invalid_value")


#: Grammars that a compiler could take for ever over, each in the field that takes it.
EXPLOSIVE: list[tuple[str, Any]] = [
    ("guided_json", {"enum": list(range(10**5))}),
    ("guided_json", {"minLength": 10**9}),
    ("guided_json", {"type": "array", "maxItems": 10**9, "items": {"pattern": "(a{1000}){1000}"}}),
    ("guided_json", {"patternProperties": {f"^.*{number}$": {} for number in range(200)}}),
    ("guided_json", {"$ref": "#"}),
    ("guided_json", {"properties": {f"p{number}": {"type": "integer"} for number in range(10_000)}}),
    ("guided_regex", "(a{1000}){1000}"),
    ("guided_regex", "((a{100}){100}){100}"),
    ("guided_regex", "(" * 1000 + ")" * 1000),
    ("guided_choice", ["x" * 1000] * 4096),
    ("guided_grammar", "root ::= root root"),
    ("guided_grammar", "start: r0\n" + "".join(f"r{number}: r{number + 1}\n" for number in range(4000)) + 'r4000: "b"'),
    ("structured_outputs", {"json": "[" * 10_000}),
]


def test_row_60_schemas_of_tools_that_explode(server: QaServer) -> None:
    schema: dict[str, Any] = {}
    for _ in range(70):
        schema = {"not": schema}
    tools = [tool(parameters={"type": "object", "properties": {"x": schema}})]
    reply = server.chat(tools=tools, tool_choice="required", max_tokens=4)
    assert (reply.status, reply.error["param"]) == (400, "tools")


@pytest.mark.parametrize(("field", "value"), EXPLOSIVE, ids=lambda value: str(value)[:40])
def test_row_60_schemas_and_grammars_that_explode(roomy: QaServer, field: str, value: Any) -> None:
    """Followed or refused, and soon; nobody else waits for it."""
    for ask in (roomy.chat, roomy.complete):
        reply = ask(**{field: value}, max_tokens=4)
        if reply.status != 200:
            refused(reply, param=field, code=reply.error["code"])


def test_row_61_grammars_without_end(server: QaServer) -> None:
    for grammar in ("root ::= root", 'root ::= root "a"', "x"):
        refused(server.complete(guided_grammar=grammar), param="guided_grammar", code="invalid_value")


def test_row_62_many_distinct_schemas(roomy: QaServer) -> None:
    for number in range(500):
        schema = {"type": "json_schema", "json_schema": {"name": f"s{number}", "schema": {"const": number}}}
        reply = roomy.chat(response_format=schema, max_tokens=8)
        assert (reply.status, reply.json["choices"][0]["message"]["content"]) == (200, str(number))


def test_row_63_a_format_and_a_guide(server: QaServer) -> None:
    reply = server.chat(response_format={"type": "json_object"}, guided_regex="a")
    refused(reply, param="guided_regex", code="invalid_value")


def test_row_64_a_schema_and_too_few_tokens(server: QaServer) -> None:
    reply = server.chat(response_format={"type": "json_object"}, max_tokens=1)
    assert (reply.status, reply.json["choices"][0]["finish_reason"]) == (200, "length")
    assert reply.json["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    "text", ["__import__('os').system('id')", "<tool_call>" + "[" * 10_00, "```python\nprint(1)\n```"]
)
def test_row_65_code_in_what_an_assistant_said(server: QaServer, text: str) -> None:
    """What a model writes is text, also when it comes back as history."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": text})}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": text, "tool_calls": [call]}]
    assert server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 2}).status == 200


# ---------------------------------------------------------------------- G. streams and lifecycles


def test_row_66_two_thousand_clients_that_leave_at_once(server: QaServer) -> None:
    """Each sends a whole request and is gone."""
    request = server.request("/v1/completions", {"prompt": "Once", "max_tokens": 4000, "stream": True, "n": 2})
    for _ in range(2000):
        with server.connect() as connection:
            connection.sendall(request)
    until(server.idle, "requests of clients that left went on")


def test_row_67_clients_that_never_read(server: QaServer) -> None:
    """Streams whose readers stand still keep neither others waiting nor memory."""
    stalled = []
    for _ in range(20):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(
            server.request("/v1/completions", {"prompt": "x", "max_tokens": 200, "stream": True, "ignore_eos": True})
        )
        stalled.append(connection)
    assert server.canary() == server.golden
    for connection in stalled:
        connection.close()


# ---------------------------------------------------------------------- H. administration: not there

ADMIN = [
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/sleep", "/wake_up", "/pause", "/resume", "/start_profile",
    "/stop_profile", "/update_weights", "/update_weights_from_disk", "/collective_rpc", "/server_info", "/invocations",
    "/pooling", "/reset_prefix_cache", "/flush_cache", "/shutdown", "/docs",
]  # fmt: skip


@pytest.mark.parametrize("path", ["../..", "/etc/passwd", "http://127.0.0.1/x", "a\0b", "tiny/../tiny"])
def test_row_68_adapters_by_path(server: QaServer, path: str) -> None:
    body = {"lora_name": path, "lora_path": path}
    refused(server.post("/v1/load_lora_adapter", body), 404)
    refused(server.complete(model=path), 404, param="model", code="model_not_found")


def test_row_69_adapters_that_do_not_fit(server: QaServer) -> None:
    refused(server.post("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "/tmp"}), 404)


def test_row_70_loading_and_unloading_adapters(server: QaServer) -> None:
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        refused(server.post(path, {"lora_name": "a"}), 404)


def test_row_71_batches_and_files_of_a_server_without_a_folder(server: QaServer) -> None:
    refused(server.post("/v1/batches", {"input_file_id": "x"}), 404, code="data_dir_missing")
    refused(server.post("/v1/files", {}), 415, code="unsupported_content_type")
    refused(server.post("/v1/uploads", {}), 404)


def test_row_71_lines_that_are_wrong(tiny_model: Path, tmp_path: Path) -> None:
    """None of such a file is run, its owner is told which lines; what goes wrong within a line ends that line only."""
    url = "/v1/completions"

    def line(name: str, **fields: Any) -> bytes:
        body = {"model": NAME, "prompt": "a", "max_tokens": 2}
        return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body, **fields}).encode() + b"\n"

    wrong = {
        b'{"custom_id": \n': "invalid_json_line",
        line("long", body={"x": "y" * (17 << 20)}): "line_too_long",
        line("good"): "duplicate_custom_id",
        line("elsewhere", url="http://127.0.0.1/"): "mismatched_endpoint",
        line("admin", url="/metrics"): "mismatched_endpoint",
    }
    with serve(tiny_model, tmp_path, "--data-dir", str(tmp_path / "data")) as server:

        def run(content: bytes) -> Any:
            body = {"input_file_id": upload(server, content), "endpoint": url, "completion_window": "24h"}
            batch = server.post("/v1/batches", body).json
            while batch["status"] in ("validating", "in_progress", "finalizing"):
                batch = server.get(f"/v1/batches/{batch['id']}").json
            return batch

        for content, code in wrong.items():
            failed = run(line("good") + content)
            assert failed["status"] == "failed"
            assert [(error["code"], error["line"]) for error in failed["errors"]["data"]] == [(code, 2)]
        ended = run(line("good") + line("refused", body={"model": "another", "prompt": "a"}))
        assert ended["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
        head = server.head("/v1/files", "content-type: multipart/form-data; boundary=b", f"content-length: {1 << 40}")
        refused(server.raw(head + b"\r\n"), 413, code="request_too_large")
        assert server.get("/ready").status == 200


@pytest.mark.parametrize("path", ADMIN)
def test_row_72_administration(server: QaServer, path: str) -> None:
    refused(server.get(path), 404)
    refused(server.post(path, {}), 404)


# ---------------------------------------------------------------------- J. gateway: not there


def test_row_76_headers_of_gateways_mean_nothing(server: QaServer) -> None:
    headers = [
        "routing-strategy: nonsense", "target-pod: 10.0.0.1:8000", "user: admin", "x-forwarded-for: 10.0.0.1",
        "x-forwarded-proto: https", "x-forwarded-host: other", "forwarded: for=10.0.0.1", "x-forwarded-prefix: /admin",
    ]  # fmt: skip
    plain, dressed = server.get("/v1/models"), server.get("/v1/models", *headers)
    assert (dressed.status, dressed.body) == (plain.status, plain.body) == (200, plain.body)
