"""Builds the native libraries with ninja and packs them into one py3-none-linux wheel."""

import shutil
import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.dist import Distribution

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))
import build as native  # noqa: E402  (csrc/build.py, importable only after the path is set)


class BuildNative(Command):
    """Compiles libwarpwright.so and, where nvcc is found, libwarpwright_cuda.so (csrc/build.py)."""

    user_options = []  # noqa: RUF012  (setuptools' own interface)

    # setuptools' editable installs ask each build sub-command for these three.
    editable_mode = False
    build_lib = None

    def initialize_options(self):
        pass

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self):
        # An editable install loads the libraries from the source tree, a wheel from its own folder.
        package = ROOT / "python" / "warpwright" if self.editable_mode else Path(self.build_lib) / "warpwright"
        native.build_release(package / "lib")

    def get_source_files(self):
        return [str(p.relative_to(ROOT)) for p in native.all_sources()]

    def get_outputs(self):
        return [str(Path(self.build_lib) / "warpwright" / "lib" / name) for name in native.RELEASE_FILES]

    def get_output_mapping(self):
        return {}


class Build(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]  # noqa: RUF012  (setuptools' own interface)

    def run(self):
        # setuptools keeps this folder from build to build, and a module that was removed would stay in the wheel.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class Wheel(bdist_wheel):
    """No Python symbols and only the stable ABI: one wheel for every Python and every torch from 2.10 on."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class NativeDistribution(Distribution):
    def has_ext_modules(self):
        return True


def packages():
    found = {}
    for name, folder in (("warpwright", "python/warpwright"), ("warpwright.bench", "bench")):
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            relative = init.parent.relative_to(ROOT / folder)
            found[".".join((name, *relative.parts))] = str(Path(folder, relative))
    found["warpwright.triton_kernels"] = "triton_kernels"
    return found


setup(
    version=native.version(),
    packages=list(packages()),
    package_dir=packages(),
    package_data={
        "warpwright": ["py.typed"],
        "warpwright.demo": ["*.j2"],
        "warpwright.tuning": ["tables/*.json"],
        "warpwright.bench": ["suites/*.yaml"],
        "warpwright.bench.report": ["*.j2", "*.css", "*.js"],
    },
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": Wheel},
    distclass=NativeDistribution,
    zip_safe=False,
)
