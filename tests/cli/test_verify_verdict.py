"""`veritrain verify-verdict` says whom and what a verdict is about, and takes no stranger's
word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.protocols.dispute.test_dispute_evidence import HONEST, play
from tests.protocols.dispute.toy import SIGNERS, header
from veritrain.cli import main
from veritrain.protocols.dispute.dispute_evidence import Bundle
from veritrain.protocols.dispute.messages import Role

REFEREE = SIGNERS[Role.REFEREE]
TRUSTED = ["--referee", REFEREE.fingerprint]
RUN = header().digest.hex()
SILENT = play("silent")


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    """Of a dispute that a deadline ended: no judge is needed."""
    (tmp_path / "bundle").write_bytes(SILENT)
    return str(tmp_path / "bundle")


def verified(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, object]]:
    code = main(["verify-verdict", *words, "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_a_verdict_of_a_trusted_referee(bundle: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, shown = verified(capfd, bundle, *TRUSTED, "--run", RUN.upper())
    assert (code, shown["is_verified"], shown["problem"]) == (0, True, None)
    assert shown["run"] == RUN
    for role in Role:
        assert shown[role.value] == SIGNERS[role].fingerprint
    assert main(["verify-verdict", bundle, *TRUSTED]) == 0
    text = capfd.readouterr().out
    for part in (RUN, *(f"{role.value:<10} {SIGNERS[role].fingerprint}" for role in Role)):
        assert part in text


def test_without_a_referee_nothing_is_verified(
    bundle: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Anybody can make the keys of a referee and of a challenger, and a deadline that passed."""
    code, shown = verified(capfd, bundle)
    assert (code, shown["is_verified"], shown["conclusion"]) == (3, False, "rejected")
    assert (
        shown["problem"]
        == f"nobody is named as trusted (--referee); the key that signed is {REFEREE.fingerprint}"
    )
    assert main(["verify-verdict", bundle]) == 3
    assert "NOT VERIFIED: nobody is named as trusted" in capfd.readouterr().out
    assert main(["verify-verdict", bundle, "--referee", "0" * 32]) == 1


def test_a_false_verdict_is_false_whoever_signed_it(tmp_path: Path) -> None:
    other = Bundle.from_bytes(HONEST, where="x").verdict
    evidence = Bundle.from_bytes(SILENT, where="x").evidence
    (tmp_path / "bundle").write_bytes(Bundle(evidence=evidence, verdict=other).to_bytes())
    assert main(["verify-verdict", str(tmp_path / "bundle")]) == 1


def test_what_needs_the_job_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bundle").write_bytes(HONEST)
    code, shown = verified(capfd, str(tmp_path / "bundle"), *TRUSTED, "--run", RUN)
    assert (code, shown["is_verified"], shown["conclusion"]) == (3, False, "rejected")
    assert "--job" in str(shown["problem"])


def test_only_the_run_that_is_meant(bundle: str, tmp_path: Path) -> None:
    envelope = tmp_path / "verdict.json"
    envelope.write_bytes(Bundle.from_bytes(SILENT, where="x").verdict)
    public = ["--referee", REFEREE.public_key.hex()]
    for name, seed in (("this", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "header").write_bytes(header(seed).to_bytes())
    for file, words, right in ((bundle, TRUSTED, 0), (str(envelope), public, 3)):
        for run, code in (
            (RUN, right),
            (str(tmp_path / "this"), right),
            (header(1).digest.hex(), 1),
            (str(tmp_path / "other"), 1),
            (str(tmp_path / "none"), 2),
            (RUN[:-1], 2),
        ):
            assert main(["verify-verdict", file, *words, "--run", run]) == code, run


def test_the_digest_of_all_steps_is_not_the_run_s(
    bundle: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What `show` prints as digest, given for what it prints as run: bad usage, no false
    verdict."""
    _, shown = verified(capfd, bundle, *TRUSTED)
    envelope = tmp_path / "verdict.json"
    envelope.write_bytes(Bundle.from_bytes(SILENT, where="x").verdict)
    for file, key in ((bundle, REFEREE.fingerprint), (str(envelope), REFEREE.public_key.hex())):
        words = ["verify-verdict", file, "--referee", key, "--run", str(shown["root"])]
        assert main(words) == 2
        assert "this is the digest of all steps of a run" in capfd.readouterr().err


def test_a_verdict_alone_names_no_parties(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "verdict.json").write_bytes(Bundle.from_bytes(SILENT, where="x").verdict)
    code, shown = verified(
        capfd, str(tmp_path / "verdict.json"), "--referee", REFEREE.public_key.hex()
    )
    assert (code, shown["run"], shown["referee"]) == (3, RUN, REFEREE.fingerprint)
    assert shown["trainer"] is shown["challenger"] is None
