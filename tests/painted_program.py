"""The program on the painted prior: ``python painted_program.py generate "a red ball" ...`` takes a second."""

from __future__ import annotations

import sys

import batch_workers
import torch

from psd_gs import cli
from psd_gs.cli import batch, generate, terminal

if __name__ == "__main__":
    torch.set_num_threads(1)
    batch_workers.paint(slow=False)
    generate.silence_libraries = terminal.silence_libraries = lambda: None
    batch.silence_libraries = batch_workers.paint  # what each worker calls first
    cli.main(sys.argv[1:])
