"""What watches a run: log file, progress line, early stopping. Each knows the trainer's events, none the trainer."""
