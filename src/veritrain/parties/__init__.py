"""What every protocol needs whose parties sign what they say. Nothing here knows a protocol.

roster         the keys of the parties, in order
envelope       the bytes that one party signs for one slot
journal        one party's own signatures: each is kept before it is sent
party_folder   where a party keeps its journals on the disk
equivocation   two different envelopes of one party for one slot: a proof by itself
evidence       the events from which anyone comes to the same conclusion offline
machine        the form of a protocol's state machine: no I/O, no clock
"""
