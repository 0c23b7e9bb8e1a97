"""Eight virtual devices for every test; the flag has to be set before JAX starts."""

import os

FLAG = "--xla_force_host_platform_device_count"
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=8".strip()
# XLA's thread pool: with fewer threads than devices, a collective can wait for itself for ever.
os.environ.setdefault("NPROC", "16")

from hypothesis import settings  # noqa: E402  (after the flag, as it may import numpy)

# The same examples in every run, and no deadline on a noisy machine.
settings.register_profile("gradx", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("gradx")

collect_ignore = [f"trajectories/make_{of}.py" for of in ("torch", "others")]  # run by hand
