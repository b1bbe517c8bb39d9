"""What a trainer or a referee shows to others over HTTP; docs/service.md describes it.

    app           the paths and their description (OpenAPI)
    served        which files of a run are shown
    ranges        conditional and partial requests
    sending       files as answers
    disputes      where the parties of a dispute exchange messages
    trainer       who answers questions there
    court         who decides there; courier carries its questions to the trainer
    challenger    who brings a dispute there
    kept          what they keep on disk
    peer          requests of one of them to another
    guard         who may ask, how often and how much
    connections   how long a connection may take for what it does
    server        the process around it
    problems      what a client is told when something is wrong
    limits        every bound on what a client can make this process do

Needs the extra `service`, but for a challenger. The verifier needs none of it.
"""
