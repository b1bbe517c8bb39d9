"""Names of Python, numpy and torch that stand for something else while a step runs, and are put
back."""
