"""Drives the machines of any protocol over a network with faults. Time ticks in seconds.

How to use it: make one `Machine` for each party, by public key; `simulate` sends what is in their
`outgoing` again and again, loses, doubles, delays and reorders it, and returns when all named
machines are over. `Answering` makes a machine of a function from a message to what is sent for it.

    simulate({key_a: machine_a, key_b: machine_b}, until=[key_a], faults=Faults(loss=0.3))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from veritrain.errors import VeritrainError
from veritrain.parties.machine import Machine, Outgoing

_AGAIN = 3  # seconds between two times that the same thing is sent


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What the network does to each message. Delays reorder messages."""

    loss: float = 0.0
    duplicates: float = 0.0
    delay: int = 0  # seconds, at most
    noise: float = 0.0  # probability of a stranger's bytes for somebody in each second


class Answering:
    """A party that says something only when it is asked.

    Attributes:
        to: public key of the party that gets the answers.
    """

    deadline = None
    is_over = False

    def __init__(self, to: bytes, answers: Callable[[bytes], list[bytes]]) -> None:
        self.to = to
        self._answers = answers
        self.outgoing: tuple[Outgoing, ...] = ()

    def receive(self, data: bytes, now: float) -> None:
        with suppress(VeritrainError):  # nothing that it answers
            self.outgoing = tuple(Outgoing(to=self.to, data=one) for one in self._answers(data))

    def tick(self, now: float) -> None:
        """Time changes nothing."""


class Network:
    """Messages on their way, with the second of their arrival."""

    def __init__(self, faults: Faults, random: Random) -> None:
        self._faults = faults
        self._random = random
        self._flying: list[tuple[int, Outgoing]] = []

    def send(self, now: int, message: Outgoing) -> None:
        faults, random = self._faults, self._random
        for _ in range(1 + (random.random() < faults.duplicates)):
            if random.random() >= faults.loss:
                self._flying.append((now + random.randint(0, faults.delay), message))

    def arriving(self, now: int) -> list[Outgoing]:
        due = [message for when, message in self._flying if when <= now]
        self._flying = [one for one in self._flying if one[0] > now]
        self._random.shuffle(due)
        return due


def simulate(
    machines: Mapping[bytes, Machine],
    *,
    until: Collection[bytes],
    faults: Faults | None = None,
    random: Random | None = None,
    noise: Callable[[], bytes] = lambda: b"",
    seconds: int = 100_000,
) -> int:
    """Let the machines talk until those of `until` are over; the second in which that was.

    Args:
        noise: bytes of a stranger, where the network has noise.
        seconds: how long at most.
    """
    faults, random = faults or Faults(), random or Random(0)
    network = Network(faults, random)
    sent: dict[tuple[bytes, bytes, bytes], int] = {}
    for now in range(seconds):
        if all(machines[key].is_over for key in until):
            return now
        for key, machine in machines.items():
            for message in machine.outgoing:
                place = (key, message.to, message.data)
                if now - sent.get(place, -_AGAIN) >= _AGAIN:
                    sent[place] = now
                    network.send(now, message)
        for message in network.arriving(now):
            machines[message.to].receive(message.data, now)
        if random.random() < faults.noise:
            machines[random.choice(list(machines))].receive(noise(), now)
        for machine in machines.values():
            machine.tick(now + 1)
    raise AssertionError(f"not over after {seconds} seconds")
