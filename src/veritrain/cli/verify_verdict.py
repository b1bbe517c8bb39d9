"""`veritrain verify-verdict`: check a referee's verdict, offline."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from veritrain.cli import access, keys, output, params, verdicts
from veritrain.errors import InconclusiveError, UsageError, VerificationError

if TYPE_CHECKING:
    from veritrain.encoding import Digest
    from veritrain.protocols.dispute.dispute_evidence import Bundle
    from veritrain.protocols.dispute.judge import Judge
    from veritrain.protocols.dispute.verdict import DisputeVerdict

_FILE = click.Path(path_type=Path, dir_okay=False)
_ENVELOPE = b"{"  # how the JSON of a verdict begins; no bundle does


@click.command(
    "verify-verdict",
    short_help="Check the verdict of a dispute, offline.",
    epilog="""\b
Examples:
  veritrain verify-verdict 5f3c.bundle --referee 0b9c...e1 --run 7d41...09
  veritrain verify-verdict 5f3c.bundle --job job.py --referee 0b9c...e1 --run runs/a
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
    "--run",
    metavar="RUN_OR_HEX",
    help="The run that you mean: the `run` that `show` prints (64 hex digits), or its place.",
)
@click.option(
    "--equivocation",
    nargs=2,
    type=_FILE,
    help="Instead: two signed messages that contradict each other.",
)
@click.option("--key", metavar="HEX", help="Public key of who signed both.")
@access.options
@output.json_option
def command(
    file: Path | None,
    job: Path | None,
    referees: tuple[str, ...],
    run: str | None,
    equivocation: tuple[Path, Path] | None,
    key: str | None,
    as_json: bool,
) -> int:
    """Check FILE, the bundle of a dispute or the verdict alone (a DSSE envelope).

    The dispute is played again from the bundle, and the operator is computed again. --job is needed
    only where the verdict depends on the job's code: which operator comes next, which batch, the
    initial state. A verdict
    alone shows the referee's signature and nothing more.

    Anybody can make keys and a bundle. So a verdict counts with --referee only. You have to know
    that it is of the run that you mean: name the run with --run, or compare the one that is
    printed.
    """
    if equivocation is not None:
        if file is not None or job is not None or referees or run is not None or key is None:
            raise UsageError("--equivocation goes with --key and nothing else")
        return _equivocation(equivocation, keys.trusted(key), as_json=as_json)
    if file is None or key is not None:
        raise UsageError("give the bundle or the verdict to check; --key is for --equivocation")
    trusted = [keys.trusted(text, "--referee") for text in referees]
    meant = None if run is None else _digest(run)
    data = _read(file)
    if data.startswith(_ENVELOPE):
        found = _signed(data, trusted, meant)
    else:
        found = _checked(data, job, trusted, meant)
    _emit(found, as_json=as_json)
    return 0 if found.problem is None else InconclusiveError.exit_code


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A verdict, and why it does not count fully. Keys are fingerprints."""

    verdict: DisputeVerdict
    problem: str | None
    referee: str
    trainer: str | None = None
    challenger: str | None = None


def _checked(
    data: bytes, job: Path | None, trusted: list[bytes | str], run: Digest | None
) -> _Found:
    from veritrain.protocols.dispute.dispute_evidence import Bundle
    from veritrain.protocols.dispute.messages import Role
    from veritrain.protocols.dispute.offline_check import terms_of
    from veritrain.transcript.signing import fingerprint, is_trusted

    bundle = Bundle.from_bytes(data, where="dispute bundle")
    evidence = bundle.evidence
    if trusted and not is_trusted(evidence.referee, trusted):
        raise VerificationError("the bundle is of a referee that is not trusted")
    _require_no_root(run, terms_of(evidence).head.root)
    terms = terms_of(evidence, run)
    verdict, problems = _replayed(data, bundle, job)
    signer = fingerprint(evidence.referee)
    if not trusted:
        problems.append(f"nobody is named as trusted (--referee); the key that signed is {signer}")
    return _Found(
        verdict=verdict,
        problem="; ".join(problems) or None,
        referee=signer,
        trainer=fingerprint(terms.key(Role.TRAINER)),
        challenger=fingerprint(terms.key(Role.CHALLENGER)),
    )


def _replayed(data: bytes, bundle: Bundle, job: Path | None) -> tuple[DisputeVerdict, list[str]]:
    """The verdict that follows here; where none does, the referee's and the reasons."""
    from veritrain.protocols.dispute.offline_check import check_bundle
    from veritrain.protocols.dispute.verdict import unseal

    referee = bundle.evidence.referee
    with output.only_results_on_stdout():
        try:
            return check_bundle(data, judge=_judge(job), referees=[referee]), []
        except InconclusiveError as error:
            more = [] if job is not None else ["no job is given (--job)"]
            return unseal(bundle.verdict, referee), [str(error), *more]


def _judge(job: Path | None) -> Judge:
    from veritrain.job.load import load_job
    from veritrain.protocols.dispute.judging.operator_judge import OperatorJudge
    from veritrain.protocols.dispute.versions import SameVersions

    return SameVersions(OperatorJudge(None if job is None else load_job(job)))


def _signed(data: bytes, trusted: list[bytes | str], run: Digest | None) -> _Found:
    """A verdict alone: who signed it, and that no more is known."""
    from veritrain.protocols.dispute.verdict import unseal
    from veritrain.transcript.record import check_equal
    from veritrain.transcript.signing import fingerprint

    publics = [key for key in trusted if isinstance(key, bytes)]
    if not publics:
        raise UsageError("--referee: a verdict without its bundle needs the referee's public key")
    for key in publics:
        try:
            verdict = unseal(data, key)
        except VerificationError:
            continue
        _require_no_root(run, verdict.root)
        if run is not None:
            check_equal("run", run, verdict.run)
        problem = "the signature is right; the evidence is not here, so nothing else is known"
        return _Found(verdict=verdict, problem=problem, referee=fingerprint(key))
    raise VerificationError("the verdict is not signed by a referee that is trusted")


def _emit(found: _Found, *, as_json: bool) -> None:
    people = {name: getattr(found, name) for name in ("trainer", "challenger", "referee")}
    known = {"is_verified": found.problem is None, "problem": found.problem}
    lines = [f"{name:<10} {key}" for name, key in people.items() if key is not None]
    lines = [*lines, *verdicts.lines(found.verdict)]
    if found.problem is None:
        lines.append(("verified: the verdict follows from the evidence", "green"))
    else:
        lines.append((f"NOT VERIFIED: {output.one_line(found.problem)}", "bold yellow"))
    data = {**verdicts.data(found.verdict), **people, **known}
    output.emit(data, lines, as_json=as_json)


def _require_no_root(run: Digest | None, root: Digest) -> None:
    """Refuse the digest of all steps in the place of the digest that names a run. The verdict
    itself says which run has that root, but that is only its claim."""
    if run == root:
        raise UsageError(
            "--run: this is the digest of all steps of a run, which train, audit and show print as "
            "`digest`; expected the digest of its header, which `veritrain show RUN` prints as "
            "`run`, "
            "or where the run is"
        )


def _digest(run: str) -> Digest:
    """Of a run's header, which is read where it is not the digest already."""
    if re.fullmatch("[0-9a-fA-F]{64}", run, re.ASCII):
        return bytes.fromhex(run)
    from veritrain.transcript.limits import LIMITS
    from veritrain.transcript.records import Header
    from veritrain.transcript.stores import open_store

    place = params.Run().convert(run, None, None)
    data = open_store(place).read("header", LIMITS.header_bytes)
    return Header.from_bytes(data, where=f"{place}: header").digest


def _equivocation(files: tuple[Path, Path], key: bytes | str, *, as_json: bool) -> int:
    from veritrain.parties.equivocation import check_equivocation
    from veritrain.protocols.dispute.messages import Message

    if not isinstance(key, bytes):
        raise UsageError("--key: expected a public key (64 hexadecimal digits)")
    slot = check_equivocation(_read(files[0]), _read(files[1]), key=key, of=Message)
    data = {"sender": slot.sender, "number": slot.number, "dispute": slot.context}
    text = f"the {slot.sender} signed two different messages with number {slot.number}"
    output.emit(data, [text, f"dispute  {slot.context.hex()}"], as_json=as_json)
    return 0


def _read(file: Path) -> bytes:
    from veritrain.protocols.dispute.dispute_evidence import Bundle
    from veritrain.transcript.given import read_given

    return read_given(file, Bundle.max_bytes)
