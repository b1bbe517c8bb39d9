"""What a trainer or a referee shows to others over HTTP; docs/service.md describes it.

    app           the paths and their description (OpenAPI)
    served        which files of a run are shown
    ranges        conditional and partial requests
    sending       files as answers
    disputes      where the parties of a dispute exchange messages
    guard         who may ask, how often and how much
    connections   how long a connection may take for what it does
    server        the process around it
    problems      what a client is told when something is wrong
    limits        every bound on what a client can make this process do

Needs the extra `service`. The verifier needs none of it.
"""
