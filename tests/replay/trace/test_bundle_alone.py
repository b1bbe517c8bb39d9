"""The verdict on an operator is checked with the bundle and the referee's public key alone."""

from __future__ import annotations

import json

from tests.replay.trace.court import Liar, Scene, hold
from tests.replay.trace.test_judge import STEP, build
from veritrain.cli import main
from veritrain.protocols.dispute.judge import Loser


def another_result(bodies):
    """The first operator that computes something wrote other bytes."""
    body = next(body for body in bodies if body["kind"] == "operator" and body["writes"])
    row = body["writes"][0]
    row[2] = bytes(byte ^ 1 for byte in row[2])
    return bodies


def test_an_operators_verdict_needs_no_job(tmp_path, capfd):
    scene = Scene.of(build(), tmp_path / "run")
    referee = hold(scene, STEP, trainer=Liar(scene, STEP, change=another_result))
    assert referee.verdict.loser is Loser.TRAINER
    (tmp_path / "bundle").write_bytes(referee.bundle())
    words = ["verify-verdict", str(tmp_path / "bundle"), "--run", str(tmp_path / "run"), "--json"]
    capfd.readouterr()
    assert main([*words, "--referee", scene.referee.public_key.hex()]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["conclusion"], shown["is_verified"]) == ("rejected", True)
    assert shown["index"] is not None
