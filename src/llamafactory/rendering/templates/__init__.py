"""Chat templates as data, one file per vendor; each defines `TEMPLATES`."""
