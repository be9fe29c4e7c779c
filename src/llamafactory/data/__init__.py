"""From data files to batches: registry, sources, formats, tokens, packing, batching.

Knows rows, records and token lists; knows no model class, no objective and no trainer.
"""
