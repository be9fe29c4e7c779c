"""Pages in a browser. Knows gradio and what stands on the floors below; the page of the chat is `chat_box`."""
