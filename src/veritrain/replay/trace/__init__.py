"""The trace of one step: what each operator read, did and wrote, entry by entry in a chain.

    entry, entry_bodies   an entry of the chain; its body as a record
    cells, calls          memory and tensors in it; an operator's call without values
    tracer                makes a trace while a step is done
    structure             says which call comes next, from the job's code alone
    arithmetic, shapes    how the run computes; what a call makes, without memory
    tiles, recompute      parts that decide parts of a result; a call computed again
    requests              what may be opened of an entry
    openings, state_openings, record_openings, packing
                          what is opened, made by one side and checked by the other
    replayed_step         a party's replay of a step, which has all of it

A trace knows nothing of a dispute: who is asked, and who is wrong, is decided above it.
"""
