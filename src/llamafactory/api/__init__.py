"""The HTTP server: requests in OpenAI's shape in, answers of an engine out.

`serve` starts it, `app` puts the routes together; `guard` decides who may come in and `media` what may be fetched.
Needs the packages of the extra `serve`.
"""
