"""Builds the native kernels where there is a C++ compiler; without one the library works, only slower.

Everything else about the package is in pyproject.toml.
"""

import importlib.util
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPP = "functional_opt/native/cpp"
FLAGS = ["-std=c++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]


class optional_build_ext(build_ext):
    """Whatever goes wrong leaves the extension out; it must not stop the installation."""

    def build_extension(self, ext):
        try:
            jaxlib = importlib.util.find_spec("jaxlib")
            ext.include_dirs = [str(Path(p) / "include") for p in jaxlib.submodule_search_locations]
            super().build_extension(ext)
        except Exception as e:
            print(f"functional_opt: native kernels left out: {e}")

    def copy_extensions_to_source(self):
        try:
            super().copy_extensions_to_source()
        except Exception as e:
            print(f"functional_opt: native kernels left out: {e}")


setup(
    ext_modules=[
        Extension(
            "functional_opt.native.kernels",
            [f"{CPP}/step.cc", f"{CPP}/newton_schulz.cc"],
            depends=["setup.py", *(f"{CPP}/{name}.h" for name in ("arrays", "machine", "rules"))],
            extra_compile_args=FLAGS,
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": optional_build_ext},
)
