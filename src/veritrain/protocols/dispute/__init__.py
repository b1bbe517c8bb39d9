"""Disputes: how a referee finds who of two parties is wrong about a step, by one small question.

    messages, challenge    what is sent and signed
    claims, bisection      what a party committed to, and the search for the first difference
    game                   the order of questions, and what follows from the answers
    hearing, referee       who asks and decides: what counts, then by when
    party                  who answers
    judge                  who recomputes the last question
    evidence, verdict      what is kept and what is signed at the end
    check                  for everyone else: the same game again, and proofs of double-dealing

Nothing here reads a file, a socket or a clock. The rules are specified in docs/disputes.md.
"""
