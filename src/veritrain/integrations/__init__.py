"""Thin writers that show a training in the tools of others; each is a callback of
`veritrain.train`.

    csv          a file with a line for each step; needs nothing
    tensorboard  pip install 'veritrain[tensorboard]'
    mlflow       pip install 'veritrain[mlflow]'
    wandb        pip install 'veritrain[wandb]'

A writer looks on. What it writes is no part of the run, and nothing that an audit looks at. Its own
library loads when the writer is made.
"""
