"""The bundle that leaves the cloud: graphs, item table and runners of a device that has neither torch nor dcclctl.

Raises:
    UsageError: at import, without the packages of the extra `bundle`.
"""

import importlib.util

from dcclctl.errors import UsageError

if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")):
    raise UsageError("bundles need the packages onnx and onnxruntime", "pip install 'dcclctl[bundle]'")
