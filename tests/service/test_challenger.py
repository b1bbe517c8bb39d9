"""The challenger's side of a dispute, with a referee that lies to it."""

from __future__ import annotations

import pytest

from tests.protocols.dispute.toy import SIGNERS, Lie, Run, RunClaims, challenge, header, opened
from veritrain.errors import InconclusiveError
from veritrain.parties.equivocation import check_equivocation
from veritrain.parties.journal import Journal
from veritrain.protocols.dispute.messages import LeafAt, Message, MessageKind, Question, Role
from veritrain.protocols.dispute.party import DisputeParty
from veritrain.service.challenger import lead_dispute
from veritrain.service.dispute_folder import DisputeArchive


class TwoQuestions:
    """A referee's service that signs a question about each leaf, all with one number."""

    def __init__(self, terms):
        self.terms, self.index, self.answers = terms, 0, []

    def open(self, challenge):
        return self.terms.dispute

    def question(self, dispute, seconds):
        question = Question(of=(Role.CHALLENGER,), topic=LeafAt(index=self.index))
        self.index += 1
        message = Message(
            run=self.terms.run, dispute=dispute, sender=Role.REFEREE, number=1,
            kind=MessageKind.QUESTION, body=question.to_value(),
        )  # fmt: skip
        return message.signed(SIGNERS[Role.REFEREE]).to_bytes()

    def send(self, dispute, message):
        self.answers.append(message)


def test_two_questions_with_one_number_are_kept_as_proof_beyond_the_dispute(tmp_path):
    data = challenge(Run(header(), 4, (Lie(2, 0),)), Run(header(), 4))
    terms = opened(data)
    folder = DisputeArchive(tmp_path).dispute(terms.dispute)
    folder.begin(data)
    party = DisputeParty(
        role=Role.CHALLENGER, signer=SIGNERS[Role.CHALLENGER], terms=terms,
        claims=RunClaims(Run(header(), 4)), journal=Journal(folder.entries()),
    )  # fmt: skip
    referee = TwoQuestions(terms)
    with pytest.raises(InconclusiveError, match="two questions with one number: proof in"):
        lead_dispute(referee, folder, party, terms.dispute, print)
    assert len(referee.answers) == 1
    folder.clear()
    pair = [file.read_bytes() for file in sorted(folder.folder.iterdir())]
    key = SIGNERS[Role.REFEREE].public_key
    assert check_equivocation(*pair, key=key, of=Message).number == 1
