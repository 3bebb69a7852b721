"""Weights on disk: read others' and our own without executing anything, rename, load strictly, save atomically."""

import argparse
import codecs
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from vidprep.errors import UsageError, VidprepError

__all__ = [
    "CheckpointError",
    "TrainingState",
    "check_blocks",
    "load_checkpoint",
    "load_into",
    "load_training",
    "present_lines",
    "read_metadata",
    "rename",
    "save_training",
    "save_weights",
    "without_wrapper",
    "write_atomically",
]

WRAPPER = "module."
"""What DataParallel puts before every name."""

WEIGHTS_KEYS = ("state_dict", "module", "model", "model_state")
"""Under which a training state holds its weights."""
PICKLED = (".pth", ".pt", ".pth.tar", ".pyth", ".ckpt", ".bin")
ARRAYS = ".pkl"
"""A pickle of NumPy arrays, such as detectron2's."""
ZIP_MAGIC = b"PK\x03\x04"


class CheckpointError(VidprepError):
    """A file of weights that is broken, unsafe, or made for another model."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """All that a training run needs to go on, after an epoch or in the middle of one.

    There is no scheduler among it: the learning rate is a function of the epoch.
    """

    epochs_done: int
    state_dict: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    """Of the fp16 gradient scaler; {} without one."""
    gradients: Mapping[str, Tensor]
    """Of parameters that the optimiser does not hold: they are never zeroed and enter the clipping norm."""
    averaged: Mapping[str, Tensor] = field(default_factory=dict)
    """The moving average of the weights; {} without one."""
    steps_done: int = 0
    """Optimiser steps of the epoch after those that are done."""
    sums: Mapping[str, float] = field(default_factory=dict)
    """Of the logged terms over these steps."""
    loader: Mapping[str, Any] = field(default_factory=dict)
    """Where the loader of the training split stands; {} between epochs."""
    random: Sequence[Mapping[str, Any]] = ()
    """Each process's random states; none between epochs, since every epoch is seeded by its number."""


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict of a `.safetensors` file, of a PyTorch file or of a pickle of NumPy arrays, on the CPU.

    A training state that holds it under "state_dict", "module" (DeepSpeed), "model" or "model_state" (PySlowFast,
    TAdaConv) is unwrapped, in this order. Nothing else is changed: prefixes such as `module.` are the converters'
    business.

    Raises:
        UsageError: no such file, or an ending that no reader is known for.
        CheckpointError: cut short, not a checkpoint, or a pickle that asks for more than tensors; nothing of such a
            file is executed.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint file.")
    if path.name.endswith(".safetensors"):
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(
                f"{path}: not a whole safetensors file ({error}); fetch or write it again."
            ) from error
    if not path.name.endswith((*PICKLED, ARRAYS)):
        raise UsageError(f"{path}: expected a file ending in .safetensors, {', '.join((*PICKLED, ARRAYS))}.")
    content = _unpickle_arrays(path) if path.name.endswith(ARRAYS) else _unpickle(path)
    if isinstance(content, dict):
        content = next((content[key] for key in WEIGHTS_KEYS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: expected a state dict (names -> tensors), found {_describe(content)}.")
    others = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others:
        raise CheckpointError(
            f"{path}: expected a state dict (names -> tensors), but {len(others)} of {len(content)} entries are no "
            f"tensors, such as {_some(others)}."
        )
    return dict(content)


def _unpickle(path: Path) -> Any:
    is_zip = zipfile.is_zipfile(path)
    with path.open("rb") as file:
        if not is_zip and file.read(4) == ZIP_MAGIC:
            raise CheckpointError(f"{path}: the file is cut short; fetch or write it again.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # the error below says it better
            # Training states bring their settings as a Namespace, which only holds values.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        wish = f"it asks for {asked[1]}" if asked else "it holds more than tensors"
        raise CheckpointError(
            f"{path}: {wish}, which weights never need, so the file may be malicious; nothing of it was executed. "
            "Expected a pickled state dict of tensors."
        ) from error
    except OSError:
        raise
    except Exception as error:  # foreign bytes make the unpickler fail in any way
        raise CheckpointError(
            f"{path}: cut short or no PyTorch checkpoint ({type(error).__name__}); fetch or write it again."
        ) from error


class _ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays in plain containers, and refuses anything else."""

    def find_class(self, module: str, name: str) -> Any:
        place = module.replace("numpy._core.", "numpy.core.")
        known = {
            ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): codecs.encode,
            ("collections", "OrderedDict"): dict,
        }
        if (place, name) not in known:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return known[place, name]


def _unpickle_arrays(path: Path) -> Any:
    """What a pickle of NumPy arrays holds, with tensors instead of these."""
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked is None:
            raise CheckpointError(f"{path}: cut short or no pickle of arrays; fetch or write it again.") from error
        raise CheckpointError(
            f"{path}: it asks for {asked[1]}, which weights never need, so the file may be malicious; nothing of it "
            "was executed. Expected a pickled state dict of NumPy arrays."
        ) from error
    except OSError:
        raise
    except Exception as error:  # foreign bytes make the unpickler fail in any way
        raise CheckpointError(
            f"{path}: cut short or no pickle of arrays ({type(error).__name__}); fetch or write it again."
        ) from error
    return _with_tensors(content)


def _with_tensors(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _with_tensors(value) for key, value in content.items()}
    is_number = isinstance(content, np.ndarray) and content.dtype.kind in "fiub"
    return torch.from_numpy(np.array(content)) if is_number else content


def read_metadata(path: Path) -> dict[str, str]:
    """What `save_weights` wrote beside the tensors of a `.safetensors` file; {} for other files."""
    if not path.name.endswith(".safetensors"):
        return {}
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint file.")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); fetch or write it again.") from error


def rename(state: Mapping[str, Tensor], table: Mapping[str, str | None]) -> dict[str, Tensor]:
    """The same tensors under other names.

    Args:
        state: name -> tensor.
        table: old name -> new name, or None for an entry that is dropped on purpose. `{}` stands for one part of a
            dotted name, and in the new name for what it stood for, in order. The first fitting line counts.

    Raises:
        CheckpointError: names that no line fits, lines that fit no name, or two tensors for one new name.
    """
    lines = [(re.compile(re.escape(old).replace(r"\{\}", r"([^.]+)")), old, new) for old, new in table.items()]
    renamed: dict[str, Tensor] = {}
    unmatched, repeated, used = [], [], set()
    for name, tensor in state.items():
        for pattern, old, new in lines:
            if match := pattern.fullmatch(name):
                used.add(old)
                if new is not None:
                    target = new.format(*match.groups())
                    repeated += [target] if target in renamed else []
                    renamed[target] = tensor
                break
        else:
            unmatched.append(name)
    unused = [old for old in table if old not in used]
    faults = [
        f"{len(names)} {what} such as {_some(names)}"
        for names, what in (
            (unmatched, "unexpected entries"),
            (unused, "expected entries missing"),
            (repeated, "entries given twice"),
        )
        if names
    ]
    if faults:
        raise CheckpointError(f"not a checkpoint of the expected layout: {'; '.join(faults)}.")
    return renamed


def without_wrapper(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state dict without the `module.` of DataParallel, where every name has it."""
    if not state or not all(key.startswith(WRAPPER) for key in state):
        return state
    return {key.removeprefix(WRAPPER): tensor for key, tensor in state.items()}


def present_lines(table: Mapping[str, str | None], state: Mapping[str, Tensor]) -> dict[str, str | None]:
    """The lines of a table for `rename` that fit at least one entry."""
    return {old: new for old, new in table.items() if any(fnmatchcase(key, old.replace("{}", "*")) for key in state)}


def check_blocks(converted: Mapping[str, Tensor], pattern: str) -> None:
    """Every block has the entries that the others have: `rename` alone only sees that some block has each.

    Args:
        converted: our name -> tensor.
        pattern: of the names that blocks share, with three groups: what is before the block, the block, what is after;
            names that do not fit are not looked at.

    Raises:
        CheckpointError: names what is missing.
    """
    blocks: dict[str, set[str]] = {}
    for name in converted:
        if match := re.fullmatch(pattern, name):
            blocks.setdefault(match[2], set()).add(match[1] + "{}" + match[3])
    everywhere = sorted(set().union(*blocks.values()))
    missing = [name.format(block) for block, names in blocks.items() for name in everywhere if name not in names]
    if missing:
        raise CheckpointError(
            f"not a checkpoint of the expected layout: {len(missing)} entries missing that other blocks have, in our "
            f"names such as {_some(missing)}."
        )


def load_into(model: nn.Module, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Put the tensors into the model, every one of them and no others.

    Raises:
        CheckpointError: names or shapes differ; the message counts them and names a few.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    reshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = [
        f"{len(names)} {what} such as {_some(names)}"
        for names, what in ((missing, "keys missing"), (unknown, "unknown keys"), (reshaped, "of another shape"))
        if names
    ]
    if faults:
        kind = "another method" if len(missing) == len(own) else "another model"
        raise CheckpointError(
            f"{source}: checkpoint of {kind}: {'; '.join(faults)}. A published checkpoint goes through "
            "`vidmodels convert` first."
        )
    model.load_state_dict(dict(state), strict=True)


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a `.safetensors` file; `path` is replaced only by a complete one.

    Args:
        path: the file.
        state: name -> tensor, on any device.
        metadata: short texts kept in the file's header: method, recipe, what the weights reached.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    content = to_safetensors(tensors, metadata=dict(metadata))
    write_atomically(path, lambda file: file.write(content))


def save_training(path: Path, state: TrainingState) -> None:
    """Write all that `load_training` needs; `path` is replaced only by a complete file."""
    content = {entry.name: getattr(state, entry.name) for entry in fields(state)}
    write_atomically(path, lambda file: torch.save(content, file))


def load_training(path: Path) -> TrainingState:
    """What `save_training` wrote.

    Raises:
        UsageError: no such file.
        CheckpointError: broken, or not the state of a training run.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file.")
    content = _unpickle(path)
    names = {entry.name for entry in fields(TrainingState)}
    if not isinstance(content, dict) or set(content) != names:
        raise CheckpointError(f"{path}: expected the state of a training run, found {_describe(content)}.")
    return TrainingState(**content)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file that takes the place of `path` only when it is complete and on the disk."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _describe(content: object) -> str:
    if isinstance(content, dict):
        return f"a dictionary of {_some([str(key) for key in content]) or 'nothing'}"
    return f"a {type(content).__name__}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
