"""Why a header is of another job or data set, in words: what to change to get the same.

What is found here explains a rejection and never makes one: the digests have decided before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from veritrain.encoding import Digest, Value, digest, same
from veritrain.job.job import SEED_BITS
from veritrain.replay.texts import difference, variants
from veritrain.runtime.text import escape
from veritrain.transcript.carried import Records
from veritrain.transcript.fields import differences, shown

_NAMED = 3  # settings, files or packages in one line
DIFF_LINES = 40  # of each file
ORDER_HINT = (
    "sort what os.listdir, glob or a set gives (the order of a set depends on PYTHONHASHSEED, "
    "which veritrain's commands set to 0)"
)
DATA_HINT = (
    "if both hold the same files, the data set computes its records differently on this machine"
)


@dataclass(frozen=True, kw_only=True)
class Cause:
    """`words` are one line; `diff` has lines of unified diffs, safe to print."""

    words: str
    diff: tuple[str, ...] = ()


def settings_cause(own: Mapping[str, Value], claimed: Mapping[str, Value]) -> str:
    """Which settings differ, with both values."""
    names = [n for n in sorted({**own, **claimed}) if n not in own or n not in claimed
             or not same(own[n], claimed[n])]  # fmt: skip
    return _listed([_setting(name, own, claimed) for name in names])


def sources_cause(
    own: Mapping[str, Value],
    claimed: Mapping[str, Value],
    texts: Mapping[str, bytes],
    carried: Mapping[str, bytes] | None,
    *,
    most: int = DIFF_LINES,
) -> Cause:
    """How the source files differ.

    Args:
        own: the digests of one's own files.
        claimed: the digests in the header.
        texts: those of one's own files that differ, as far as they could be read.
        carried: the run's files, where it carries them.
        most: lines of each diff.
    """
    only_own = [name for name in sorted(own) if name not in claimed]
    only_run = [name for name in sorted(claimed) if name not in own]
    words: list[str] = []
    for name in tuple(only_own):
        twin = next((other for other in only_run if claimed[other] == own[name]), None)
        if twin is not None:
            words.append(f"your {_name(name)} is the run's {_name(twin)}: give the file that name")
            only_own.remove(name)
            only_run.remove(twin)
    diff: tuple[str, ...] = ()
    for name in sorted(own.keys() & claimed.keys()):
        if own[name] != claimed[name]:
            found = _source_cause(name, name, texts, claimed, carried, most)
            what = _unsaid(name in texts) if found is None else found.words
            words.append(f"{_name(name)} differs {what}")
            diff += () if found is None else found.diff
    if len(only_own) == len(only_run) == 1:
        mine, theirs = only_own[0], only_run[0]
        found = _source_cause(mine, theirs, texts, claimed, carried, most)
        if found is not None:
            words.append(
                f"your job has {_name(mine)} where the run's has {_name(theirs)} (if they are one "
                f"file, give it that name), and they differ {found.words}"
            )
            return Cause(words=_listed(words), diff=diff + found.diff)
    words += [f"your job has {_name(name)} too, which the run has not" for name in only_own]
    words += [f"the run's job has {_name(name)} too, which yours has not" for name in only_run]
    return Cause(words=_listed(words), diff=diff)


def dataset_cause(
    own: Sequence[Digest],
    claimed: Records | None,
    form: Callable[[int], str],
) -> str:
    """How the records differ.

    Args:
        own: digests of one's own records.
        claimed: the run's, where it carries them.
        form: the form of one's own record of this number.
    """
    if claimed is None:
        return (
            "the records are others, or in another order; which, cannot be said: the run does not"
            f" carry the digests of its records. {ORDER_HINT[0].upper()}{ORDER_HINT[1:]};"
            f" {DATA_HINT}"
        )
    theirs = claimed.all_digests()
    if list(own) == theirs:
        return "the records are the same; the run's header does not fit to its own records"
    more, fewer = Counter(own) - Counter(theirs), Counter(theirs) - Counter(own)
    pairs = enumerate(zip(own, theirs, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(own), len(theirs)))
    if not more and not fewer:
        place = theirs.index(own[first])
        return (
            "they hold the same records in another order: your record "
            f"{first} is the run's record {place}; {ORDER_HINT}"
        )
    if not fewer:
        return _surplus("your data set has the run's records and", "your record", own, more)
    if not more:
        return _surplus("your data set lacks", "the run's record", theirs, fewer)
    return _replaced(own, theirs, claimed, form, first)


def versions_cause(own: Mapping[str, str], claimed: Mapping[str, str]) -> str:
    """The versions that differ: `torch 1.0 (here 2.13.0)`."""
    names = [name for name in sorted({**own, **claimed}) if own.get(name) != claimed.get(name)]
    names.sort(key=lambda name: name not in own or name not in claimed)  # what both use comes first
    texts: list[str] = []
    for name in names:
        here = f"here {_plain(own[name])}" if name in own else "not used here"
        there = _plain(claimed[name]) if name in claimed else "not used"
        texts.append(f"{_plain(name)} {there} ({here})")
    return f"the run was recorded with {_listed(texts, ', ')}"


def _setting(name: str, own: Mapping[str, Value], claimed: Mapping[str, Value]) -> str:
    here, there = own.get(name), claimed.get(name)
    if isinstance(here, dict) and isinstance(there, dict):
        return _listed([f"setting {text}" for text in differences({name: here}, {name: there})])
    texts = [_value(name, values) for values in (claimed, own)]
    kind = ""
    if name in own and name in claimed and (here == there or texts[0] == texts[1]):
        is_alike = type(here) is type(there) and here != there
        kind = " (other ones)" if is_alike else " (another type or sign)"
    return f"setting {_name(name)} is {texts[0]} in the run and {texts[1]} in your job{kind}"


def _value(name: str, values: Mapping[str, Value]) -> str:
    if name not in values:
        return "not there"
    value = values[name]
    if isinstance(value, bytes) and name == "seed" and len(value) == SEED_BITS // 8:
        return str(int.from_bytes(value, "big"))
    return shown(value)


def _source_cause(
    mine: str,
    theirs: str,
    texts: Mapping[str, bytes],
    claimed: Mapping[str, Value],
    carried: Mapping[str, bytes] | None,
    most: int,
) -> Cause | None:
    """How one's own file of the first name differs from the run's of the second; None where it
    cannot be said."""
    own = texts.get(mine)
    if own is None:
        return None
    if carried is not None and theirs in carried:
        found = difference(mine, own, carried[theirs], runs_name=theirs, most=most)
        return Cause(words=found.words, diff=found.diff)
    for words, made in variants(own):
        if digest("source", made) == claimed[theirs]:
            return Cause(words=words)
    return None


def _unsaid(is_read: bool) -> str:
    if is_read:
        return "(the run does not carry its sources, so it cannot be said in what)"
    return "(your file is too large to be compared, or is no longer what was read)"


def _surplus(what: str, whose: str, digests: Sequence[Digest], extra: Counter[Digest]) -> str:
    """Of records that one has beside those of the other; of equal ones the last count as the
    extra."""
    left, places = Counter(extra), list[int]()
    for index in range(len(digests) - 1, -1, -1):
        if left[digests[index]] > 0:
            left[digests[index]] -= 1
            places.append(index)
    count = len(places)
    more = f"{count} more" if whose == "your record" else f"{count} of the run's records"
    return f"{what} {more}; the first is {whose} {places[-1]}"


def _replaced(
    own: Sequence[Digest],
    theirs: Sequence[Digest],
    claimed: Records,
    form: Callable[[int], str],
    first: int,
) -> str:
    more = Counter(own) - Counter(theirs)
    unknown = sum(more.values())
    if len(own) != len(theirs):
        return (
            f"your data set has {len(own)} records and the run's {len(theirs)}; {unknown} of yours"
            f" are not among the run's, and the first that differs is record {first}"
        )
    count = sum(a != b for a, b in zip(own, theirs, strict=True))
    how = _how(form(first), claimed.form(first))
    if count > 2 * unknown:
        place = next(i for i, value in enumerate(own) if value in more)
        shape = form(place)
        alone = "" if shape in claimed.forms else ", a form that no record of the run has"
        return (
            f"{unknown} of your {len(own)} records are not among the run's, the first is record"
            f" {place}, {_plain(shape)}{alone}; the others are in another order: {ORDER_HINT}"
        )
    if count == 1:
        return f"record {first} differs: {how}"
    hint = f"; {DATA_HINT}" if count == len(own) else ""
    return f"{count} of {len(own)} records differ, the first is record {first}: {how}{hint}"


def _how(own: str, claimed: str) -> str:
    if own == claimed:
        return f"of the same form, {_plain(own)}, with other values"
    return f"yours is {_plain(own)}, the run's {_plain(claimed)}"


def _listed(texts: Sequence[str], between: str = "; ") -> str:
    left = len(texts) - _NAMED
    return between.join([*texts[:_NAMED], f"and {left} more"] if left > 0 else texts)


def _name(name: str) -> str:
    return shown(name)


def _plain(text: str) -> str:
    return escape(text[:240])
