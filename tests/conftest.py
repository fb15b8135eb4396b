"""What all tests share."""

import os

# Before torch is loaded: threads that wait for each other sleep. Where another program is at work, too, those
# that spin keep the one they wait for from running, and a second's test takes minutes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
