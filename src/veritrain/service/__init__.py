"""The processes of trainers, referees and challengers; docs/service.md describes them.

    app                 the paths of a service and their description (OpenAPI)
    served              which files of a run are shown
    dispute_paths       the paths on which parties of a dispute exchange messages
    backends            what these paths call
    run_trainer         a trainer who answers questions about one run
    run_referee         a referee who decides disputes about one run
    running_dispute     one dispute that is not over, at the referee
    question_forwarder  its questions on their way to the trainer, and the answers back
    challenger          a party that brings a dispute to a referee
    dispute_folder      what each of them keeps on disk
    service_limits      the bounds on what clients may send

HTTP itself is in `net`. All but the challenger need the extra `service`. The verifier needs none of
it.
"""
