"""`veritrain dispute`: challenge a run before a referee, and see the dispute through."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from veritrain.cli import access, keys, output, params, verdicts
from veritrain.errors import InconclusiveError, TranscriptError, UsageError, VerificationError
from veritrain.runtime.progress import Step, tell

if TYPE_CHECKING:
    from veritrain.encoding import Digest
    from veritrain.job.job import Job
    from veritrain.protocols.dispute.replayed_claims import ReplayedClaims
    from veritrain.protocols.dispute.verdict import DisputeVerdict
    from veritrain.service.challenger import RefereeClient
    from veritrain.service.dispute_folder import DisputeArchive
    from veritrain.transcript import Signer, Transcript

_FILE = click.Path(path_type=Path, dir_okay=False)
_NONCE_BYTES = 16


@click.command(
    "dispute",
    short_help="Challenge a run before a referee.",
    epilog="""\b
Examples:
  veritrain dispute https://trainer.example:8470 --referee https://referee.example:8471 \\
      --job job.py --key my.key
  veritrain dispute runs/a --referee http://127.0.0.1:8471 --job job.py --key my.key --step 41

Exit status: 0 the challenge is refuted, or nothing differs; 1 the run is rejected,
by the verdict or without a dispute where its data set is not the job's; 3 inconclusive,
2 bad usage or a run that cannot be read.""",
)
@click.argument("run", type=params.Run())
@click.option("--referee", required=True, metavar="URL", help="Address of the referee's service.")
@click.option("--job", required=True, type=_FILE, help="Your own copy of the job file.")
@click.option("--key", required=True, type=_FILE, help="Your key, see `veritrain keygen`.")
@click.option(
    "--step",
    type=click.IntRange(0),
    metavar="N",
    help="Challenge this step. [default: the first that comes to something else here]",
)
@click.option(
    "--referee-key",
    metavar="HEX",
    help="Public key or fingerprint that the referee must have.",
)
@click.option("--referee-token-file", type=_FILE, help="File with the referee's bearer token.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="challenges",
    show_default=True,
    help="Folder for what was signed, then for the verdict and its evidence.",
)
@access.options
@output.json_option
def command(
    run: str,
    referee: str,
    job: Path,
    key: Path,
    step: int | None,
    referee_key: str | None,
    referee_token_file: Path | None,
    out: Path,
    as_json: bool,
) -> int:
    """Challenge RUN before a referee, and answer until the verdict.

    RUN is a folder, an HTTP address or an fsspec URL. The command first compares the data set with
    the one that the run committed to: another one needs no dispute. It asks the referee who it is.
    It recomputes the run to find the first step that differs, unless --step names one; the job is
    executed. Then the referee asks both sides. The verdict counts when this side comes to it too,
    from the evidence. Keep it running: a side that falls silent loses. After an interruption the
    same command goes on with the same dispute, from the files that it keeps in --out.
    """
    from veritrain.job.load import load_job
    from veritrain.net.http_client import HttpClient, token_in
    from veritrain.service.challenger import RefereeClient
    from veritrain.service.dispute_folder import DisputeArchive

    signer = keys.load(key)
    expected = None if referee_key is None else keys.trusted(referee_key, "--referee-key")
    client = RefereeClient(HttpClient(referee, token_in(referee_token_file)))
    with output.only_results_on_stdout() as stdout:
        side = _Side(job=load_job(job), transcript=_opened(run), signer=signer)
        side.require_agreed()
        # What does not fit shows now, not when the run is recomputed.
        judge = side.referee(client, expected)
        archive = DisputeArchive(out)
        found = side.difference() if step is None else step
        claims = None if found is None else side.claims(found)
        if claims is None:
            data = {"difference": None, "step": step, "verdict": None}
            where = f"step {step} comes" if step is not None else "all steps come"
            lines: list[output.Line] = [f"nothing to dispute: {where} to the same here"]
            output.emit(data, lines, as_json=as_json, stream=stdout)
            return 0
        ended = side.dispute(client, claims, judge, archive)
        place = _save(archive, ended)
        verdict = side.checked(ended)
    data = {
        "difference": found,
        "step": step,
        "verdict": verdicts.data(verdict),
        "bundle": str(place),
    }
    output.emit(data, verdicts.lines(verdict), as_json=as_json)
    return verdicts.exit_code(verdict)


@dataclass(frozen=True, kw_only=True)
class _Side:
    """The challenger."""

    job: Job
    transcript: Transcript
    signer: Signer

    def require_agreed(self) -> None:
        """Check what a dispute takes for agreed: job, numerics and data set.

        Raises:
            UsageError: the run is of another job.
            VerificationError, InconclusiveError: as `find_difference.require_agreed`.
        """
        from veritrain.job.sources import require_job
        from veritrain.protocols.dispute.find_difference import require_agreed

        require_job(self.job, self.transcript.header.job, self.transcript.location)
        require_agreed(self.job, self.transcript)

    def difference(self) -> int | None:
        """The first step that comes to something else here."""
        from veritrain.protocols.dispute.find_difference import first_difference

        total = len(self.transcript.leaves) - 1
        with output.progress():
            return first_difference(
                self.job,
                self.transcript,
                lambda step: tell(
                    Step(doing="recomputed step", number=step, done=step, total=total)
                ),
            )

    def claims(self, step: int) -> ReplayedClaims | None:
        """What this side says about a step; None if it says the same."""
        from veritrain.protocols.dispute.find_difference import challenger_claims

        claims = challenger_claims(self.job, self.transcript, step)
        own = claims.leaf(step).entry
        return None if own == self.transcript.leaves[step].to_bytes() else claims

    def dispute(
        self,
        client: RefereeClient,
        claims: ReplayedClaims,
        referee: bytes,
        archive: DisputeArchive,
    ) -> _Ended:
        """Lead a dispute before this referee to its end; an interrupted one, if there is one."""
        from veritrain.parties.journal import Journal
        from veritrain.protocols.dispute.challenge import open_challenge
        from veritrain.protocols.dispute.messages import Role
        from veritrain.protocols.dispute.party import DisputeParty
        from veritrain.service.challenger import lead_dispute

        challenge = self._challenge(referee, claims, archive)
        terms = open_challenge(challenge, referee=referee)
        folder = archive.dispute(terms.dispute)
        folder.begin(challenge)
        party = DisputeParty(
            role=Role.CHALLENGER,
            signer=self.signer,
            terms=terms,
            claims=claims,
            journal=Journal(folder.entries()),
        )
        bundle = lead_dispute(client, folder, party, terms.dispute, output.warn)
        return _Ended(dispute=terms.dispute, referee=referee, bundle=bundle)

    def _challenge(self, referee: bytes, claims: ReplayedClaims, archive: DisputeArchive) -> bytes:
        """The one of an interrupted dispute, or a new one."""
        from veritrain.protocols.dispute.challenge import make_challenge
        from veritrain.service.challenger import unfinished

        begun = unfinished(
            archive,
            run=self.transcript.header.digest,
            referee=referee,
            challenger=self.signer.public_key,
            leaves=claims.leaves.commitment,
        )
        if begun is not None:
            output.warn("going on with the dispute that was interrupted")
            return begun.challenge
        return make_challenge(
            signer=self.signer,
            header=self.transcript.header.to_bytes(),
            head=self.transcript.heads[-1].to_bytes(),
            referee=referee,
            nonce=os.urandom(_NONCE_BYTES),
            leaves=claims.leaves,
        )

    def checked(self, ended: _Ended) -> DisputeVerdict:
        """The verdict, if this side comes to it too.

        Raises:
            InconclusiveError: it does not, or cannot say.
        """
        from veritrain.protocols.dispute.judging.operator_judge import OperatorJudge
        from veritrain.protocols.dispute.offline_check import check_bundle
        from veritrain.protocols.dispute.versions import SameVersions
        from veritrain.transcript.record import check_equal

        run, judge = self.transcript.header.digest, SameVersions(OperatorJudge(self.job))
        try:
            verdict = check_bundle(ended.bundle, judge=judge, referees=[ended.referee], run=run)
            check_equal("dispute", ended.dispute, verdict.dispute)
        except (TranscriptError, VerificationError) as error:
            raise InconclusiveError(f"the referee's verdict does not follow: {error}") from error
        return verdict

    def referee(self, client: RefereeClient, expected: bytes | str | None) -> bytes:
        """The referee's public key.

        Raises:
            UsageError: it is not the expected one, or decides disputes about another run.
        """
        from veritrain.transcript.signing import fingerprint, is_trusted

        about = client.about()
        if expected is not None and not is_trusted(about.key, [expected]):
            raise UsageError(f"--referee-key: the referee has the key {fingerprint(about.key)}")
        if about.run != self.transcript.header.digest:
            raise UsageError(f"the referee decides disputes about another run: {about.run.hex()}")
        output.warn(f"the referee's key is {fingerprint(about.key)}")
        return about.key


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """What is there at the end of a dispute; nobody has checked the bundle yet."""

    dispute: Digest
    referee: bytes
    bundle: bytes


def _opened(run: str) -> Transcript:
    """The run, whose records hang together.

    Raises:
        TranscriptError, UsageError: it cannot be read.
        VerificationError: they do not: no dispute is needed to reject it.
    """
    from veritrain.transcript import Transcript

    transcript = Transcript.open(run)
    transcript.verify_signatures()
    transcript.verify_chain()
    return transcript


def _save(archive: DisputeArchive, ended: _Ended) -> Path:
    """Write verdict and bundle as the referee made them, delete the journal, and return the
    bundle's path."""
    from veritrain.protocols.dispute.dispute_evidence import Bundle
    from veritrain.service.dispute_folder import bundle_name, verdict_name

    verdict = Bundle.from_bytes(ended.bundle, where="dispute bundle").verdict
    archive.write(verdict_name(ended.dispute), verdict)
    archive.write(bundle_name(ended.dispute), ended.bundle)
    archive.dispute(ended.dispute).clear()
    return archive.folder / bundle_name(ended.dispute)
