"""One framework to fine-tune, align, export and serve language models. Importing this package loads nothing heavy."""

__version__ = "0.1.0"
