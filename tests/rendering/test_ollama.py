"""Ollama templates, run by a small interpreter of the part of Go's template language they use."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llamafactory.rendering.ollama import Frame, ollama_template
from llamafactory.rendering.records import Conversation, Message
from llamafactory.rendering.renderer import Renderer
from llamafactory.rendering.template import get_template, templates

Build = Callable[..., Renderer]
NAMES = list(templates())


class Go:
    """Runs `if`, `else`, `else if`, `range`, `end`, variables and values; nothing else is accepted."""

    def __init__(self, source: str) -> None:
        parts = re.split(r"\{\{ (.*?) \}\}", source)
        assert all("{{" not in part for part in parts[::2]), "an action is not understood"
        self.tokens = [("do" if i % 2 else "text", part) for i, part in enumerate(parts) if i % 2 or part]
        self.at = 0
        self.tree = self._block()
        assert self.at == len(self.tokens), "an `end` too many"

    def _block(self) -> list[tuple]:
        nodes: list[tuple] = []
        while self.at < len(self.tokens):
            kind, value = self.tokens[self.at]
            if kind == "do" and (value == "end" or value.startswith("else")):
                return nodes
            self.at += 1
            if kind == "do" and value.split()[0] in ("if", "range"):
                nodes.append(self._branch(value))
            else:
                nodes.append((kind, value))
        return nodes

    def _branch(self, value: str) -> tuple:
        word, condition = value.split(" ", 1)
        inside = self._block()
        other: list[tuple] = []
        _, closing = self.tokens[self.at]
        self.at += 1
        if closing.startswith("else if "):
            other = [self._branch(closing.removeprefix("else "))]
        elif closing == "else":
            other = self._block()
            self.at += 1
        return (word, condition, inside, other)

    def run(self, data: dict[str, object]) -> str:
        return self._run(self.tree, data, data, {})

    def _run(self, nodes: list[tuple], root: dict, dot: dict, names: dict) -> str:
        text = ""
        for node in nodes:
            if node[0] == "text":
                text += node[1]
            elif node[0] == "if":
                text += self._run(node[2] if self._value(node[1], root, dot, names) else node[3], root, dot, names)
            elif node[0] == "range":
                index, item = re.fullmatch(r"(\$\w+), (\$\w+) := \.Messages", node[1]).groups()
                for number, message in enumerate(root["Messages"]):
                    names[index], names[item] = number, message
                    text += self._run(node[2], root, message, names)
            elif found := re.fullmatch(r"(\$\w+) :?= (true|false)", node[1]):
                names[found[1]] = found[2] == "true"
            elif node[1] == '$turns := "."':
                names["$turns"] = "."
            elif node[1] == '$turns = printf "%s." $turns':
                names["$turns"] = f"{names['$turns']}."
            else:
                text += str(self._value(node[1], root, dot, names))
        return text

    def _value(self, words: str, root: dict, dot: dict, names: dict) -> object:
        if words == "eq (len (slice $.Messages $i)) 1":
            return len(root["Messages"]) - names["$i"] == 1
        if found := re.fullmatch(r'eq \.Role "(\w+)"', words):
            return dot["Role"] == found[1]
        if words == "len $turns":
            return len(names["$turns"])
        if words.startswith('"'):
            return json.loads(words)
        if words.startswith("$."):
            return root[words[2:]]
        return names[words] if words.startswith("$") else dot[words[1:]]


def given(conversation: Conversation) -> dict[str, object]:
    """What Ollama hands to a template: the system prompt also stands among the messages."""
    messages = [{"Role": "system", "Content": conversation.system}] if conversation.system else []
    messages += [
        {"Role": {"observation": "tool"}.get(message.role, message.role), "Content": message.content}
        for message in conversation.messages
    ]
    return {"System": conversation.system, "Messages": messages}


def talk(*texts: str, system: str = "") -> Conversation:
    return Conversation(tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)), system)


DIALOGUES = [
    talk("Hi"),
    talk("Hi", system="Be terse."),
    talk("Hi", "Hello.\n", "And {{ .Role }}?", "Fine.", "再见", system="Be\nterse."),
    talk("a", "b", "c"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_ollama_sees_the_prompts_of_training(name: str, dialogue: Conversation, render_with: Build) -> None:
    renderer = render_with(name)
    assert Go(renderer.to_ollama()).run(given(dialogue)) == renderer.text(dialogue, generation=True)


@pytest.mark.parametrize("name", ["llama3", "llama2", "gemma", "mistral"])
def test_the_begin_token_is_left_to_a_tokenizer_that_writes_it(
    name: str, render_with: Build, fresh: Callable[[], PreTrainedTokenizerFast]
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = fresh()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    renderer = render_with(name, tokenizer=tokenizer)
    for dialogue in DIALOGUES:
        written = "<s>" + Go(renderer.to_ollama()).run(given(dialogue))
        assert written == renderer.text(dialogue, generation=True)


def test_thinking_off_opens_an_empty_thought(render_with: Build) -> None:
    renderer = render_with("qwen3", enable_thinking=False)
    assert Go(renderer.to_ollama()).run(given(DIALOGUES[2])) == renderer.text(DIALOGUES[2], generation=True)


def test_an_answer_left_open_is_continued(render_with: Build) -> None:
    written = Go(render_with("qwen3_nothink").to_ollama()).run(given(talk("Hi", "Hel")))
    assert written.endswith("<|im_start|>assistant\nHel")


CALLED = (Message("user", "a"), Message("assistant", "b"))
RESULTS = [
    Conversation((*CALLED, *(Message("observation", text) for text in "12"[:count]), *then))
    for count in (1, 2)
    for then in ((), (Message("assistant", "c"), Message("user", "d")))
]


@pytest.mark.parametrize("name", NAMES)
def test_tool_results_have_their_place(name: str, render_with: Build) -> None:
    renderer = render_with(name)
    go = Go(renderer.to_ollama())
    for conversation in RESULTS:
        assert go.run(given(conversation)) == renderer.text(conversation, generation=True)


def test_the_default_system_prompt_is_part_of_the_template(render_with: Build) -> None:
    renderer = render_with("gemma", default_system="Say {{ .System }} {{content}}.")
    for dialogue in DIALOGUES:
        assert Go(renderer.to_ollama()).run(given(dialogue)) == renderer.text(dialogue, generation=True)


@pytest.mark.parametrize("name", ["llama3", "qwen", "gemma", "mistral", "vicuna", "default"])
def test_a_tokenizers_own_template_gives_an_ollama_template_too(
    name: str, render_with: Build, fresh: Callable[[], PreTrainedTokenizerFast]
) -> None:
    tokenizer = fresh()
    tokenizer.chat_template = render_with(name, tokenizer=tokenizer).to_jinja()
    own = render_with(None, tokenizer=tokenizer)
    for dialogue in DIALOGUES:
        assert Go(own.to_ollama()).run(given(dialogue)) == own.text(dialogue, generation=True)


def test_stop_words_are_the_texts_of_the_stop_ids(render_with: Build) -> None:
    renderer = render_with("llama3")
    assert renderer.stop_words == ("<|eot_id|>", "<|eom_id|>")
    assert render_with("glm4").stop_words == ("</s>", "<|user|>", "<|observation|>")


def test_literal_braces_are_spelled_as_a_string() -> None:
    frame = Frame(user=("{{a", "b}}"), answer=("", "x"), generation="G")
    written = ollama_template(frame, bos="", writes_bos=False)
    assert '{{ "{{" }}a' in written


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="needs the Go toolchain to run the real template engine")
def test_the_real_engine_agrees_with_the_interpreter(render_with: Build, tmp_path: Path) -> None:
    program = """package main
import ("encoding/json"; "os"; "text/template")
func main() {
  var jobs []struct{ Template string; Data struct { System string; Messages []struct{ Role, Content string } } }
  if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil { panic(err) }
  for _, job := range jobs {
    t := template.Must(template.New("t").Parse(job.Template))
    if err := t.Execute(os.Stdout, job.Data); err != nil { panic(err) }
    os.Stdout.Write([]byte{0})
  }
}
"""
    (tmp_path / "main.go").write_text(program, encoding="utf-8")
    jobs, expected = [], []
    for name in NAMES:
        for enable in (True, False):
            renderer = render_with(name, enable_thinking=enable)
            for dialogue in (*DIALOGUES, *RESULTS):
                jobs.append({"Template": renderer.to_ollama(), "Data": given(dialogue)})
                expected.append(renderer.text(dialogue, generation=True))
    done = subprocess.run(
        ["go", "run", "main.go"], cwd=tmp_path, input=json.dumps(jobs).encode(), capture_output=True, check=True
    )
    assert done.stdout.decode().split("\0")[:-1] == expected


def test_frames_may_lack_a_system_prompt() -> None:
    frame = Frame(user=("U", "u"), answer=("A", "a"), prefix="P")
    assert Go(ollama_template(frame, bos="", writes_bos=False)).run(given(talk("q", system="s"))) == "PUqu"
    assert replace(frame, prefix="").prefix == ""
    assert get_template("empty").generation == ()
