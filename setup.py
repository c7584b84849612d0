"""Builds the native kernels where there is a C++ compiler; without one the library works, only slower.

Everything else about the package is in pyproject.toml.
"""

import importlib.util
import site
import sysconfig
import zlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPP = "functional_opt/native/cpp"
FLAGS = ["-std=c++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
NOT_BUILT = "not_built.txt"  # beside the extension: why there is none, for native.status()


def checksum() -> int:
    """Returns that of the C++ sources, as in native/library.py, which refuses an extension of others."""
    return zlib.crc32(b"".join(p.read_bytes() for p in sorted(Path(CPP).glob("*.*")))) & 0x7FFFFFFF


def headers() -> str:
    """Returns the folder of XLA's headers: those of the jaxlib that the kernels will run with.

    pip builds in an environment of its own, with the newest jaxlib, but runs the Python that it installs for: if that
    has a jaxlib already, the kernels must be built for it.
    """
    installed = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    installed += [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    jaxlib = importlib.util.find_spec("jaxlib")
    here = [Path(p) / "jaxlib" for p in installed] + [
        Path(p) for p in (jaxlib.submodule_search_locations if jaxlib else ())
    ]
    return next(str(p / "include") for p in here if (p / "include" / "xla" / "ffi" / "api" / "c_api.h").exists())


class optional_build_ext(build_ext):
    """Leaves the extension out whatever goes wrong, which must not stop the installation, and says so once."""

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            ext.include_dirs = [headers()]
            super().build_extension(ext)
            (target.parent / NOT_BUILT).unlink(missing_ok=True)
        except Exception as e:
            why = " ".join(str(e).split()) or type(e).__name__
            print(f"functional_opt: native kernels left out, XLA does their work: {why}")
            target.parent.mkdir(parents=True, exist_ok=True)
            (target.parent / NOT_BUILT).write_text(f"{why}\n")

    def copy_extensions_to_source(self):
        """Copies what was built: the extension, or the reason for which there is none."""
        [ext] = self.extensions
        built = Path(self.build_lib, self.get_ext_filename(self.get_ext_fullname(ext.name)))
        source = Path(CPP).parent / NOT_BUILT
        note = built.parent / NOT_BUILT
        if built.exists() and not note.exists():
            super().copy_extensions_to_source()
            source.unlink(missing_ok=True)
        elif note.exists():
            self.copy_file(str(note), str(source))


setup(
    ext_modules=[
        Extension(
            "functional_opt.native.kernels",
            [f"{CPP}/step.cc", f"{CPP}/newton_schulz.cc"],
            depends=["setup.py", *(f"{CPP}/{name}.h" for name in ("arrays", "machine", "rules"))],
            define_macros=[("FUNCTIONAL_OPT_SOURCES", str(checksum()))],
            extra_compile_args=FLAGS,
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": optional_build_ext},
)
