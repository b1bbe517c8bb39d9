"""How bytes travel between two parties over HTTP. Nothing in this folder knows a protocol.

Every module here bounds the other side, which is not trusted: its time, its sizes and its number
of requests.

    http_limits   every bound on a client of an HTTP service
    guard         which requests are answered: rate, header, token
    connections   how long a connection may take for each phase of a request
    body_budget   bodies of requests, within a bound for one and a bound for all
    problems      the constant answers to requests that go wrong
    ranges        conditional and partial requests
    sending       answers, in one piece or in chunks
    listener      the process around a service: address, TLS and an orderly end
    http_client   requests to another party's service

All but `http_client` need the extra `service`.
"""
