"""The one error tree: what the package raises on purpose for its caller is a `VeritrainError`.

    VeritrainError
    ├── UsageError              what the caller asked for cannot be done
    │   ├── JobError            the job cannot be loaded or is not valid
    │   ├── StorageError        a file of a run cannot be written: a full disk, for example
    │   ├── AlreadyWrittenError    (transcript.store) a file is there, and files are written once
    │   └── UnansweredError        (net.http_client) another party's service gave no answer
    ├── NumericsError           a step cannot be given machine-independent bits
    │   └── UnsupportedOperatorError   an operator without a rule, refused by name
    ├── FieldError              a value that another party wrote is not of its form: names the field
    ├── TranscriptError         bytes that another party wrote are malformed: names file and place
    ├── VerificationError       the bytes are well formed, the claim they make is false
    │   ├── EquivocationError      (parties.equivocation) a party signed two things for one slot
    │   └── UnlikeRanksError    processes that train one run have come to unlike states
    ├── FalseOpeningError       (the trace's openings) a value is not the one that was committed to
    ├── LostRankError           another process of a run that several train is gone
    ├── InconclusiveError       neither true nor false could be shown (missing data, for example)
    │   └── CannotFollowError      (the trace's structure) the judge cannot follow the job's code
    └── StoppedRunError         (cli.train) a signal ended the training; it can be resumed

Outside of it is what no caller of the package has to tell apart:

    ProblemError        (net.problems) ends a request; a service answers with its text
    StoppedError        (service.backends) a dispute waits for the next start; likewise
    OpeningNeededError  (judging.judged_case) ends a judge's check, which needs an opening first
    CaughtError         (judging.judged_case) ends a judge's check by a ruling
    TerminatedError     (training.recorder) SIGTERM: a KeyboardInterrupt, as Ctrl-C is
    LookupError         Python's own: what a service was asked for is not there

`exit_code` is what the command line returns when the error reaches it: 0 accepted, 1 rejected,
2 bad usage or unreadable input, 3 inconclusive.
"""

from __future__ import annotations


class VeritrainError(Exception):
    """Base class. The message is for people: what, where, expected and got, what to do next."""

    exit_code = 2


class UsageError(VeritrainError):
    """What the caller asked for cannot be done as asked, by a mistake or by what is around it."""


class JobError(UsageError):
    """The job file or `Job` object cannot be used."""


class StorageError(UsageError):
    """A file of a run cannot be written or deleted; what was committed before is untouched."""


class NumericsError(VeritrainError):
    """A step cannot be given bits that are independent of the machine."""


class UnsupportedOperatorError(NumericsError):
    """An operator has no rule under the job's numerics; it is refused by name."""


class FieldError(VeritrainError):
    """A field of a value that another party wrote is missing, unknown or not of its form."""


class TranscriptError(VeritrainError):
    """Bytes that another party wrote are malformed. Says which file and which place in it."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


class VerificationError(VeritrainError):
    """Well-formed bytes make a claim that is false."""

    exit_code = 1


class UnlikeRanksError(VerificationError):
    """The ranks of a run that several processes train do not have one state after a step."""


class LostRankError(VeritrainError):
    """Another rank of a run that several processes train has ended, or cannot be reached."""


class InconclusiveError(VeritrainError):
    """Neither acceptance nor rejection could be justified."""

    exit_code = 3
