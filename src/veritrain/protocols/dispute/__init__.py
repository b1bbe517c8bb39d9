"""Disputes: how a referee finds which of two parties is wrong about a step, by small questions.

    messages, challenge    the envelope of a dispute, and the challenge that opens one
    claims, bisection      what a party committed to, and the search for the first difference
    game                   the order of questions, and what follows from the answers
    dispute_state          which messages count
    referee                who asks, sets deadlines and decides
    party                  who answers
    judge                  who recomputes the last question
    dispute_evidence       what the referee keeps
    verdict                what it signs at the end
    versions               whether a judge here has the releases of the run
    offline_check          for everybody else: the same game again from the evidence
    dispute_limits         every bound on what is read

Nothing here reads a file, a socket or a clock. The rules are specified in docs/disputes.md.
"""
