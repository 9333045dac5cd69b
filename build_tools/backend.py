"""The PEP 517 backend: setuptools, plus the one thing that a static list cannot say.

The extension is compiled against torch's headers. Naming torch in `build-system.requires` would
make pip download a second one, of several gigabytes, into its isolated build environment even
where the environment that is installed into has one. So torch is a build requirement only where
`preflight.find_torch` finds none; then the requirement is the very one that the package has at run
time, and both resolve to the same wheel.
"""

from __future__ import annotations

import shutil
from typing import Any

import preflight
from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Config = dict[str, Any] | None


def _torch_requirement() -> list[str]:
    """Fails before anything is downloaded where the build could not succeed."""
    preflight.find_compiler()
    preflight.check_python_headers()
    torch = preflight.find_torch()
    if torch is None:
        return [preflight.TORCH_REQUIREMENT]
    preflight.use_cuda(torch)
    return []


def get_requires_for_build_wheel(config_settings: Config = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings: Config = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch_requirement()]


def build_wheel(
    wheel_directory: str, config_settings: Config = None, metadata_directory: str | None = None
) -> str:
    # setuptools adds to this folder and never removes: a module deleted since the last build
    # would otherwise go on being shipped. CMake's own folder beside it is kept.
    for stale in (preflight.ROOT / "build").glob("lib*"):
        shutil.rmtree(stale)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
