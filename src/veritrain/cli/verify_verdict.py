"""`veritrain verify-verdict`: check a referee's verdict, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from veritrain.cli import keys, output, verdicts
from veritrain.errors import InconclusiveError, TranscriptError, UsageError, VerificationError

if TYPE_CHECKING:
    from veritrain.verify.dispute.verdict import Verdict

_FILE = click.Path(path_type=Path, dir_okay=False)
_ENVELOPE = b"{"  # how the JSON of a verdict begins; no bundle does


@click.command(
    "verify-verdict",
    epilog="""\b
Examples:
  veritrain verify-verdict 5f3c.bundle --job job.py --referee 0b9c...e1
  veritrain verify-verdict 5f3c.bundle
  veritrain verify-verdict 5f3c.verdict.json --referee PUBLIC_KEY
  veritrain verify-verdict --equivocation first second --key PUBLIC_KEY

Exit status: 0 the verdict is right, whatever it says; 1 it is false;
3 it was not shown to be right or false; 2 bad usage or an unreadable file.""",
)
@click.argument("file", required=False, type=_FILE)
@click.option("--job", type=_FILE, help="Your own copy of the job file; it is executed.")
@click.option(
    "--referee",
    "referees",
    multiple=True,
    metavar="HEX",
    help="Public key or fingerprint of a referee whose word you take; may be repeated.",
)
@click.option(
    "--equivocation",
    nargs=2,
    type=_FILE,
    help="Instead: two signed messages that contradict each other.",
)
@click.option("--key", metavar="HEX", help="Public key of who signed both.")
@output.json_option
def command(
    file: Path | None,
    job: Path | None,
    referees: tuple[str, ...],
    equivocation: tuple[Path, Path] | None,
    key: str | None,
    as_json: bool,
) -> int:
    """Check FILE, the bundle of a dispute or the verdict alone (a DSSE envelope).

    With --job the dispute is played again from the bundle, with the operator recomputed. Without it all
    else is checked, which decides where somebody fell silent, resigned or broke the rules. A verdict
    alone shows the referee's signature and nothing more. Without --referee it is for you to know
    whose key signed.
    """
    if equivocation is not None:
        if file is not None or job is not None or referees or key is None:
            raise UsageError("--equivocation goes with --key and nothing else")
        return _equivocation(equivocation, keys.trusted(key), as_json=as_json)
    if file is None or key is not None:
        raise UsageError("give the bundle or the verdict to check; --key is for --equivocation")
    trusted = [keys.trusted(text, "--referee") for text in referees]
    data = _read(file)
    if data.startswith(_ENVELOPE):
        verdict, problem = _signed(data, trusted)
    else:
        verdict, problem = _checked(data, job, trusted)
    _emit(verdict, problem, as_json=as_json)
    return 0 if problem is None else InconclusiveError.exit_code


def _checked(
    data: bytes, job: Path | None, trusted: list[bytes | str]
) -> tuple[Verdict, str | None]:
    """The verdict of a bundle, and why it does not count fully."""
    from veritrain.transcript.signing import fingerprint, is_trusted
    from veritrain.verify.dispute.evidence import Bundle
    from veritrain.verify.dispute.unjudged import check_unjudged
    from veritrain.verify.dispute.verdict import unseal

    bundle = Bundle.from_bytes(data, where="dispute bundle")
    referee = bundle.evidence.referee
    output.warn(f"the referee's key is {fingerprint(referee)}")
    if trusted and not is_trusted(referee, trusted):
        raise VerificationError("the bundle is of a referee that is not trusted")
    sealed = unseal(bundle.verdict, referee)
    try:
        if job is None:
            return check_unjudged(data, referees=[referee]), None
        return _replayed(data, job, referee), None
    except InconclusiveError as error:
        return sealed, str(error)


def _replayed(data: bytes, job: Path, referee: bytes) -> Verdict:
    from veritrain.job import load_job
    from veritrain.verify.dispute.check import check
    from veritrain.verify.trace.judge import OperatorJudge

    with output.only_results_on_stdout():
        return check(data, judge=OperatorJudge(load_job(job)), referees=[referee])


def _signed(data: bytes, trusted: list[bytes | str]) -> tuple[Verdict, str]:
    """A verdict alone: who signed it, and that no more is known."""
    from veritrain.verify.dispute.verdict import unseal

    publics = [key for key in trusted if isinstance(key, bytes)]
    if not publics:
        raise UsageError("--referee: a verdict without its bundle needs the referee's public key")
    for key in publics:
        try:
            verdict = unseal(data, key)
        except VerificationError:
            continue
        return verdict, "the signature is right; the evidence is not here, so nothing else is known"
    raise VerificationError("the verdict is not signed by a referee that is trusted")


def _emit(verdict: Verdict, problem: str | None, *, as_json: bool) -> None:
    data = {**verdicts.data(verdict), "is_verified": problem is None, "problem": problem}
    lines = verdicts.lines(verdict)
    if problem is None:
        lines.append(("verified: the verdict follows from the evidence", "green"))
    else:
        lines.append((f"NOT VERIFIED: {output.one_line(problem)}", "bold yellow"))
    output.emit(data, lines, as_json=as_json)


def _equivocation(files: tuple[Path, Path], key: bytes | str, *, as_json: bool) -> int:
    from veritrain.verify.dispute.check import check_equivocation

    if not isinstance(key, bytes):
        raise UsageError("--key: expected a public key (64 hexadecimal digits)")
    found = check_equivocation(_read(files[0]), _read(files[1]), key=key)
    data = {"sender": found.sender.value, "number": found.number, "dispute": found.dispute}
    text = f"the {found.sender.value} signed two different messages with number {found.number}"
    output.emit(data, [text, f"dispute  {found.dispute.hex()}"], as_json=as_json)
    return 0


def _read(file: Path) -> bytes:
    from veritrain.verify.dispute.evidence import Bundle

    try:
        with file.open("rb") as opened:
            data = opened.read(Bundle.max_bytes + 1)
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
    if len(data) > Bundle.max_bytes:
        raise TranscriptError(str(file), f"expected at most {Bundle.max_bytes} bytes, got more")
    return data
