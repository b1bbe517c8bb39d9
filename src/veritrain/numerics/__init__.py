"""What makes a step replayable: profiles, rules, exact kernels, counter-based random numbers.

The rooms, each of which imports those before it alone:

- `platform`: what is asked of PyTorch and the machine;
- `keys`: where random numbers take their keys;
- `cpu`: the kernels on the CPU;
- `device`: their twins on other devices;
- `rules`: what an operator means, and the dispatch mode that computes each by its rule;
- `logged`: the kernels of PyTorch's own, rounded to a grid, with a log;
- `patches`: names of Python and torch that are replaced while a step runs (imports `keys` and
  `platform`);
- here: the profiles, which put all that in force.
"""

from veritrain.numerics.platform.devices import CPU
from veritrain.numerics.profile import Profile, resolve

__all__ = ["CPU", "Profile", "resolve"]
