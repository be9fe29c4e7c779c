"""A small program with SGLang's command line and `/generate` protocol, for tests of how we run and ask the real one."""
