"""One thread for torch: its tensors here are tiny, and two threads that wait for each other take thrice as long."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
