"""What `seq2seq-ext export` writes.

=================  ==============================================================================
format             what is in the folder
=================  ==============================================================================
``"onnx"``         ``encoder.onnx``, ``step.onnx``
``"aoti"``         ``encoder.pt2``, ``step.pt2``
both               ``source_vocabulary.json``, ``target_vocabulary.json``; in ``export.json`` the
                   names of all inputs and outputs in order, the axis of the batch in each tensor
                   of the state, the special tokens, and the model's config
``"prepacked"``    a run folder whose recurrent matrices have 8 bits, and an ``export.json``
=================  ==============================================================================

A folder appears whole or not at all.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from seq2seq_ext import onnx
from seq2seq_ext.data.files import write_json_atomically
from seq2seq_ext.export.checking import Check, aoti_runner, compare, onnx_runner
from seq2seq_ext.export.modules import batch_axis, state_names
from seq2seq_ext.export.programs import Programs, in_plain_torch, traced
from seq2seq_ext.training.run import Run, save_run

FORMATS = ("onnx", "aoti", "prepacked")
MANIFEST = "export.json"
_VERSION = 1
_SUFFIX = {"onnx": "onnx", "aoti": "pt2"}


def export_run(run: Run, folder: str | os.PathLike[str], format: str) -> Check | None:
    """Write a model for another runtime, and compare it with the original.

    Args:
        run: the model, on the CPU.
        folder: made; an earlier export there is replaced, anything else is left alone.
        format: one of `FORMATS`.

    Returns:
        The comparison; None where there is nothing to run it with, or for ``"prepacked"``, whose
        weights are rounded by intent.

    Raises:
        ValueError: if `format` is another one.
        FileExistsError: if `folder` holds something else.
        MissingExtraError: if the extra ``[onnx]`` is needed and not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {list(FORMATS)}, got {format!r}")
    folder = Path(folder)
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not (folder / MANIFEST).is_file():
        raise FileExistsError(f"{folder} is there, and no earlier export")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary, "new")
        made.mkdir()  # with the usual permissions, which the temporary one has not
        check = _write(run, made, format)
        if folder.exists():
            os.replace(folder, Path(temporary, "old"))
        os.replace(made, folder)
    return check


def _write(run: Run, folder: Path, format: str) -> Check | None:
    if format == "prepacked":
        save_run(folder, run, dtype=torch.int8)
        write_json_atomically(folder / MANIFEST, {"version": _VERSION, "format": format})
        return None
    model = run.model
    programs = traced(model)
    paths = {name: folder / f"{name}.{_SUFFIX[format]}" for name in ("encoder", "step")}
    if format == "onnx":
        for name, path in paths.items():
            program, inputs, outputs = _part(programs, name)
            onnx.export(
                in_plain_torch(program),
                f=path,
                input_names=inputs,
                output_names=outputs,
                verbose=False,
            )
    else:
        for name, path in paths.items():
            program, _, _ = _part(programs, name)
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    run.source_vocabulary.save(folder / "source_vocabulary.json")
    run.target_vocabulary.save(folder / "target_vocabulary.json")
    write_json_atomically(folder / MANIFEST, _manifest(run, programs, paths))
    if format == "aoti":
        encoder = aoti_runner(paths["encoder"], is_step=False)
        return compare(model, encoder, aoti_runner(paths["step"], is_step=True))
    runners = [onnx_runner(path) for path in paths.values()]
    if runners[0] is None or runners[1] is None:
        return None
    return compare(model, runners[0], runners[1])


def _part(
    programs: Programs, name: str
) -> tuple[torch.export.ExportedProgram, list[str], list[str]]:
    if name == "encoder":
        return programs.encoder, programs.encoder_inputs, programs.encoder_outputs
    return programs.step, programs.step_inputs, programs.step_outputs


def _manifest(run: Run, programs: Programs, paths: dict[str, Path]) -> dict[str, Any]:
    config = run.model.config
    parts: dict[str, Any] = {}
    for name, path in paths.items():
        _, inputs, outputs = _part(programs, name)
        parts[name] = {"file": path.name, "inputs": inputs, "outputs": outputs}
    ids = ("pad_token_id", "unk_token_id", "bos_token_id", "eos_token_id")
    return {
        "version": _VERSION,
        "format": "onnx" if paths["step"].suffix == ".onnx" else "aoti",
        **parts,
        "batch_axis": {name: batch_axis(name) for name in state_names(config)},
        **{name: getattr(config, name) for name in ids},
        "model": config.to_dict(),
    }
