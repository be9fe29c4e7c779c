"""One frozen model per concern; every key of the surface belongs to exactly one of them."""
