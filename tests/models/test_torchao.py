"""torchao: weights rounded while loading, adapters on 8 bits, and training that knows how weights will be rounded."""
