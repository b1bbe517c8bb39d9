"""What makes a step replayable: profiles, rules, exact kernels, counter-based random numbers."""

from veritrain.numerics.profile import CPU, Profile, resolve

__all__ = ["CPU", "Profile", "resolve"]
