"""What a run carries beside its commitments, so that a difference can be explained and not only
found.

Both files are optional: a run without them is as valid, and neither can make a false claim true.
`Sources` has the bytes of the job's source files; the header has the digest of each. `Records` has
the digests of the data set's records, under the Merkle root in the header, and the form of each,
signed by the run's key. Nothing of either is believed before `check` was passed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from veritrain.encoding import DIGEST_BYTES, Digest, Value, digest, encode
from veritrain.errors import VerificationError
from veritrain.transcript import fields as check
from veritrain.transcript import merkle
from veritrain.transcript.forms import MAX_FORM_CHARS
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.record import Record, check_equal
from veritrain.transcript.records import SIGNATURE_BYTES, Header
from veritrain.transcript.signing import Signer, verify_signature

_FORMS = 1 << 12  # distinct ones
_OTHER_FORM = "one of many other forms"
_NUMBER = np.dtype("<u2")


@dataclass(frozen=True, kw_only=True)
class Sources(Record):
    """The bytes of a job's source files, by the names that the header gives them."""

    type_name: ClassVar[str] = "sources"
    max_bytes: ClassVar[int] = LIMITS.sources_bytes
    max_items: ClassVar[int | None] = 1 << 17

    files: dict[str, bytes]

    def __post_init__(self) -> None:
        if type(self.files) is not dict:
            raise check.wrong("files", "a map", self.files)
        for name, data in self.files.items():
            check.check_text("files", name, LIMITS.path_chars)
            if type(data) is not bytes:
                raise check.wrong(f"files {check.shown(name)}", "a byte string", data)

    def check(self, header: Header) -> None:
        """Check that these are the files that the header names, and no others.

        Raises:
            VerificationError: names the first file that is missing, is not the header's, or
                differs.
        """
        claimed = header.job.get("sources")
        names = claimed if isinstance(claimed, dict) else {}
        for name in sorted(self.files.keys() ^ names.keys()):
            problem = "is missing" if name in names else "is not a source file of the header"
            raise VerificationError(f"sources: {check.shown(name)} {problem}")
        for name, data in self.files.items():
            expected, got = names[name], digest("source", data)
            if expected != got:
                text = expected.hex() if isinstance(expected, bytes) else check.shown(expected)
                raise VerificationError(
                    f"sources: {check.shown(name)}: expected {text}, got {got.hex()}"
                )


@dataclass(frozen=True, kw_only=True)
class Records(Record):
    """Digest and form of every record of a run's data set."""

    type_name: ClassVar[str] = "records"
    max_bytes: ClassVar[int] = LIMITS.records_bytes
    max_items: ClassVar[int | None] = _FORMS + 16

    run: Digest  # of the header
    digests: bytes  # 32 for each record
    forms: list[str]  # distinct
    form_numbers: bytes  # 2 for each record, little-endian: its place in `forms`
    signature: bytes  # by the header's key

    def __post_init__(self) -> None:
        check.check_digest("run", self.run)
        check.check_bytes("signature", self.signature, SIGNATURE_BYTES)
        if type(self.digests) is not bytes or len(self.digests) % DIGEST_BYTES:
            raise check.wrong("digests", f"{DIGEST_BYTES} bytes for each record", self.digests)
        check.check_bytes("form_numbers", self.form_numbers, _NUMBER.itemsize * self.count)
        if type(self.forms) is not list or len(self.forms) > _FORMS:
            raise check.wrong("forms", f"an array of at most {_FORMS}", self.forms)
        for form in self.forms:
            check.check_text("forms", form, MAX_FORM_CHARS)
        numbers = np.frombuffer(self.form_numbers, _NUMBER)
        if len(numbers) and int(numbers.max()) >= len(self.forms):
            raise check.wrong("form_numbers", f"numbers below {len(self.forms)}", numbers.max())

    @classmethod
    def signed(cls, header: Header, records: Iterable[tuple[Digest, str]], signer: Signer) -> Self:
        """Of digest and form of each record.

        Raises:
            UsageError: more records than fit.
        """
        digests, numbers = bytearray(), bytearray()
        places: dict[str, int] = {}
        for value, form in records:
            if form not in places and len(places) >= _FORMS - 1:
                form = _OTHER_FORM
            digests += value
            numbers += places.setdefault(form, len(places)).to_bytes(_NUMBER.itemsize, "little")
        unsigned = cls(
            run=header.digest,
            digests=bytes(digests),
            forms=list(places),
            form_numbers=bytes(numbers),
            signature=bytes(SIGNATURE_BYTES),
        )
        signature = signer.sign(cls.type_name, unsigned._signed_bytes())
        made = replace(unsigned, signature=signature)
        made.to_bytes()
        return made

    @classmethod
    def would_fit(cls, count: int) -> bool:
        """Is there room for this many records, whatever their forms?"""
        return cls.bytes_of(count) + _FORMS * 4 * MAX_FORM_CHARS <= cls.max_bytes

    @classmethod
    def bytes_of(cls, count: int) -> int:
        """About how much this many records take, of few forms."""
        return count * (DIGEST_BYTES + _NUMBER.itemsize)

    @property
    def count(self) -> int:
        """How many records."""
        return len(self.digests) // DIGEST_BYTES

    def digest_of(self, index: int) -> Digest:
        """Digest of a record."""
        return self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]

    def all_digests(self) -> list[Digest]:
        """The digests of all records, in order."""
        return [self.digest_of(index) for index in range(self.count)]

    def form(self, index: int) -> str:
        """Form of a record."""
        return self.forms[int(np.frombuffer(self.form_numbers, _NUMBER)[index])]

    def check(self, header: Header) -> None:
        """Check that these are the records that the header commits to, and who signed their forms.

        Raises:
            VerificationError: another run, number of records, root or key.
        """
        check_equal("records: run", header.digest, self.run)
        if self.count != header.dataset_count:
            raise VerificationError(
                f"records: expected {header.dataset_count} digests, got {self.count}"
            )
        check_equal("records: root", header.dataset_root, merkle.root(self.all_digests()))
        verify_signature(header.public_key, self.type_name, self._signed_bytes(), self.signature)

    def _signed_bytes(self) -> bytes:
        value: dict[str, Value] = self.to_value()
        del value["signature"]
        return encode(value)
