"""How a judge decides which of two entries is false, given the one before it that both name.

The first difference of two entries decides what is looked at (docs/disputes.md, section 4). Each
check has a room:

    leaves      a leaf names a rounding log just where the numerics have one; it is the outcome
                of its trace
    form        an entry that is not of the one form is false; step 0 follows from the job
    inputs      entry 0: the agreed leaf, and the batch that seed and data set prescribe
    next_call   what is called, with which views of which cells: the job's own code says it
    reads       which entry wrote a cell last, and what: the entries in between say it
    results     what came out: the operator is computed again, from its operands
    parts       the same from parts of the operands, where these are large

The judge checks a party's openings against what both parties are bound to. What it cannot decide
is INCONCLUSIVE.
"""
