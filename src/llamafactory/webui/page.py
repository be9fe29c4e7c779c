"""The page of the command webchat: a chat box and nothing else."""

from __future__ import annotations

import gradio as gr

from llamafactory.inference.chat_model import ChatModel
from llamafactory.webui.chat_box import ChatBox


def build_chat_page(model: ChatModel, *, title: str) -> gr.Blocks:
    """A page to chat with one loaded model."""
    with gr.Blocks(title=title, analytics_enabled=False, fill_height=True) as page:
        box = ChatBox(lambda: model, model.options)
        page.unload(box.forget)
    return page
