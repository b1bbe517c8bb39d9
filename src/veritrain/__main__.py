"""`python -m veritrain`: the command line."""

import sys

from veritrain.cli import main

sys.exit(main())
