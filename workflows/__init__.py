"""Definitions, the runner, one file per stage, and the command line."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; see `distributed.cluster.WORKER_ENV`
