"""Settings of all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from shapes import check_modules

# The shapes that stand in signatures are checked while the tests run, and only then.
check_modules(["dcclctl.events", "dcclctl.models", "dcclctl.devices", "dcclctl.distillation", "dcclctl.evaluation"])

from buckets import bucket, s3_server  # noqa: E402, F401
from world import shop, world  # noqa: E402, F401 (after the hook: what they import is checked)

# No test asserts a time, so neither may hypothesis; and a run is repeated with the same examples.
settings.register_profile("dcclctl", deadline=None, derandomize=True)
settings.load_profile("dcclctl")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the real logs: $DCCL_DATA, or shared/data in a folder above the repository; skips without one."""
    named = os.environ.get("DCCL_DATA")
    places = [Path(named)] if named else [above / "shared" / "data" for above in Path(__file__).resolve().parents]
    for place in places:
        if (place / "ml-100k").is_dir():
            return place
    pytest.skip("the real logs are not here: name their folder in DCCL_DATA (docs/logs.md says where they come from)")
