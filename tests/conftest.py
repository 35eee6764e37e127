"""Settings of all tests."""

from hypothesis import settings

# No test asserts a time, so neither may hypothesis; and a run is repeated with the same examples.
settings.register_profile("dcclctl", deadline=None, derandomize=True)
settings.load_profile("dcclctl")
