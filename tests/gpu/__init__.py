"""What has to be measured on a GPU: ``make test-gpu``, README.md here."""

import os

# torch's profiler writes two lines into the output each time it is used, unless it is told before torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
