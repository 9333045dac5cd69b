"""Loads the CUDA library where this torch can run it; elsewhere, calls on a GPU are told why not.

The library registers the CUDA side of the operators that ``_C`` defines.  It is linked with torch's
own CUDA libraries, so that beside a torch without them, or with those of another CUDA major, it
stays on the disk; the package then serves the CPU alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import torch

from seq2seq_ext import _C

_LIBRARY = Path(__file__).with_name("_cuda.so")


def load_cuda_library() -> str | None:
    """Register the CUDA kernels; what keeps them from it, as a sentence, or None."""
    info = _C.build_info()
    built = info["cuda_version"]
    if built is None:
        return (
            "this build of seq2seq_ext has no CUDA kernels. To have them, install a CUDA build of "
            "torch and the CUDA toolkit, and build seq2seq_ext with SEQ2SEQ_EXT_CUDA=on"
        )
    given = torch.version.cuda
    if given is None or given.split(".")[0] != built.split(".")[0]:
        runs = "is a CPU build" if given is None else f"was built for CUDA {given}"
        return (
            f"the CUDA kernels of this seq2seq_ext were built with CUDA {built}, and torch "
            f"{torch.__version__} {runs}. Install a torch for CUDA {built.split('.')[0]}, or build "
            "seq2seq_ext anew beside this one"
        )
    try:
        torch.ops.load_library(str(_LIBRARY))  # type: ignore[no-untyped-call]
    except OSError as error:
        return f"the CUDA kernels of seq2seq_ext do not load: {error.__cause__ or error}"
    return None


def refuse(problem: str) -> torch.library.Library:
    """Register, for every operator, a CUDA side that raises; it is gone with what is returned."""
    library = torch.library.Library("seq2seq_ext", "IMPL")  # type: ignore[no-untyped-call]

    def kernel(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(f"got tensors on a GPU, but {problem}")

    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
        if name.startswith("seq2seq_ext::"):
            library.impl(name, kernel, "CUDA")  # type: ignore[no-untyped-call]
    return library


# Why tensors on a GPU are refused; None where the kernels are there.
CUDA_PROBLEM = load_cuda_library()
_refusal = None if CUDA_PROBLEM is None else refuse(CUDA_PROBLEM)
