"""Leaves out the doctests of bridges to libraries that are not installed."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["functional_opt/interop/torch*.py"]
