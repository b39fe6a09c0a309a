"""Measurements that need a GPU: ``make test-gpu``; see the README.md here."""

import os

# torch's profiler writes two lines into the output each time it is used, unless it is told before torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
