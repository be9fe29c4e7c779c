"""The real page on loopback, driven through gradio's own client."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import gradio_client
import pytest
from tests.inference.calling_engine import CallingEngine

from llamafactory.errors import ConfigError
from llamafactory.inference.chat_model import ChatModel
from llamafactory.webui.address import Address
from llamafactory.webui.chat import run_webchat
from llamafactory.webui.chat_box import check_tools
from llamafactory.webui.page import build_chat_page
from llamafactory.webui.server import Server, build_app

TOOLS = json.dumps([{"name": "add", "description": "", "parameters": {"type": "object", "properties": {}}}])
FIELDS: dict[str, Any] = {
    "param_1": "S", "param_2": "", "param_3": 64, "param_4": 0, "param_5": 0.9, "param_6": 0, "param_7": 1.0,
    "param_8": -1, "param_9": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> CallingEngine:
    return CallingEngine()


@pytest.fixture(scope="module")
def url(engine: CallingEngine) -> Iterator[str]:
    address = Address("127.0.0.1", None, None)
    with ChatModel.from_engine(engine) as model:
        server = Server(build_app(build_chat_page(model, title="Chat"), address), address)
        thread = threading.Thread(target=server.run)
        thread.start()
        yield server.url
        server.stop()
        thread.join()


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    opened = gradio_client.Client(url, verbose=False, download_files=False)
    yield opened
    opened.close()


def say(client: Any, text: str, **fields: Any) -> list[dict[str, Any]]:
    values = [text, *{**FIELDS, **fields}.values()]
    return list(client.predict(*values, api_name="/chat")[0])


def texts(bubbles: list[dict[str, Any]]) -> list[str]:
    return ["".join(part["text"] for part in bubble["content"]) for bubble in bubbles]


def test_a_conversation_goes_on_and_can_be_cleared(client: Any) -> None:
    assert texts(say(client, "hello")) == ["hello", "[S] 1: hello"]
    assert texts(say(client, "<b>", param_1="")) == ["hello", "[S] 1: hello", "&lt;b&gt;", "[] 3: &lt;b&gt;"]
    client.predict(api_name="/clear")
    assert texts(say(client, "again")) == ["again", "[S] 1: again"]


def test_thoughts_fold_and_calls_wait_for_their_result(client: Any, engine: CallingEngine) -> None:
    bubbles = say(client, "sum", param_2=TOOLS)
    assert [bubble["metadata"].get("title") if bubble["metadata"] else None for bubble in bubbles] == [
        None, "Thought", "Calls add",
    ]  # fmt: skip
    assert bubbles[1]["metadata"]["status"] == "done" and texts(bubbles)[2] == '```json\n{\n  "a": 1\n}\n```'
    say(client, "3", param_2=TOOLS)
    assert [message.role for message in engine.asked[-1].messages] == ["user", "function", "observation"]


def test_pieces_arrive_as_they_are_made_and_stop_ends_them(client: Any, engine: CallingEngine) -> None:
    job = client.submit("slow", *FIELDS.values(), api_name="/chat")
    while len(job.outputs()) < 3:
        assert not job.done()
    assert engine.running == 1
    client.predict(api_name="/stop")
    said = texts(job.result(timeout=60)[0])[-1]
    assert said.startswith("word word") and len(said) < 100_000
    assert engine.running == 0


def test_options_reach_the_engine(client: Any, engine: CallingEngine) -> None:
    say(client, "hello", param_3=7, param_4=0.5, param_6=3, param_8=5)
    options = engine.options[-1]
    assert (options.max_new_tokens, options.temperature, options.top_k, options.seed) == (7, 0.5, 3, 5)
    assert options.do_sample
    say(client, "hello")
    assert not engine.options[-1].do_sample and engine.options[-1].seed is None


def test_mistakes_are_one_sentence_on_the_page(client: Any) -> None:
    with pytest.raises(gradio_client.exceptions.AppError, match="The prompt does not fit"):
        say(client, "fail")
    with pytest.raises(gradio_client.exceptions.AppError, match="tools must be a JSON list"):
        say(client, "hello", param_2="[{}]")
    assert client.predict("[", api_name="/check_tools").startswith("⚠ tools: tools must be")
    assert check_tools(TOOLS) == "1 tools" and check_tools("") == ""


@pytest.mark.parametrize("path", ["/gradio_api/file=/etc/passwd", "/gradio_api/file=pyproject.toml"])
def test_no_file_of_this_machine_is_served(url: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(url + path)
    assert error.value.code in {403, 404}


def test_the_command_refuses_an_open_address_before_it_loads_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.delenv("GRADIO_AUTH", raising=False)
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        run_webchat({"model_name_or_path": "no/such model"})


def test_the_page_asks_nothing_of_other_machines(url: str) -> None:
    with urllib.request.urlopen(url) as answer:
        page = answer.read().decode()
        assert "connect-src 'self'" in answer.headers["content-security-policy"]
    assert "fonts.googleapis" not in page and '"analytics_enabled":false' in page.replace(" ", "")


def test_with_a_password_every_route_asks_for_it(engine: CallingEngine) -> None:
    from starlette.testclient import TestClient

    address = Address("0.0.0.0", None, ("me", "secret"))
    with ChatModel.from_engine(engine) as model:
        app = build_app(build_chat_page(model, title="Chat"), address)
        client = TestClient(app)  # type: ignore[arg-type]
        routes = (
            "/",
            "/config",
            "/theme.css",
            "/gradio_api/info",
            "/gradio_api/queue/join",
            "/static/x",
            "/assets/x",
            "/nothing",
        )
        assert {client.get(path).status_code for path in routes} == {401}
        assert client.get("/config", auth=("me", "secret")).status_code == 200
