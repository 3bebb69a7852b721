"""A trained model for programs without this package: ONNX, or a torch.export program; checked before it is in place.

    run -> model -> traced, with any number of clips or a fixed one -> PART/model.onnx -> run, compared -> model.onnx

What is traced is a fixed list of operators, so a form whose shapes follow from what it sees (gathered channels, videos
that leave early) cannot be written down; `Method.export_obstacle` says so. The order of operators that onnxruntime
chooses rounds otherwise than PyTorch's, and no more than that: the file is thrown away where it differs by more.
"""

import io
import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

import vidprep
from vidmodels.data import known_classes
from vidmodels.methods import METHODS
from vidmodels.recipes import dump_recipe
from vidmodels.runs import Run, class_names, load_model
from vidprep.errors import UsageError, VidprepError

__all__ = ["ExportError", "Exported", "Form", "check_export_packages", "export_model", "model_facts"]

Form = Literal["trainable", "dynamic"]
TOLERANCE = 1e-4
"""Of the largest logit: float32 sums of a deep network, added up in another order, differ by 1e-7 to 1e-5 of it."""
EXAMPLE_CLIPS = 2
"""Clips that are traced with: 1 would be taken for a constant."""
CHECKED_CLIPS = (1, 3)
"""Clips of the calls that are compared, where their number is left open."""
CLIPS_AXIS = "clips"
FACTS_FILE = "vidmodels.json"
"""What a .pt2 archive holds beside the program."""
NOISY_LOGGERS = ("torch.onnx", "torch.export", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir")
INT64 = 7
"""What ONNX calls the type."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class ExportError(VidprepError):
    """A model that could not be written, or whose file does not give what the model gives."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written and checked."""

    path: Path
    form: Form
    num_bytes: int
    """With the file of weights beside it, where there is one."""
    clips: int | None
    """Of every call; None: any number."""
    difference: float
    """Largest one between its outputs and the model's."""
    scale: float
    """Largest output of the model."""
    num_checked: int
    """Clips that were compared."""
    checked_by: str

    @property
    def lines(self) -> list[str]:
        """For a terminal."""
        clips = "any number of clips" if self.clips is None else f"{self.clips} clip{'s' if self.clips > 1 else ''}"
        return [
            f"{self.path}: {self.form} form, {clips} a call, {self.num_bytes / 1e6:.1f} MB",
            f"checked with {self.checked_by} on {self.num_checked} random clips: largest difference "
            f"{self.difference:.1e} of logits up to {self.scale:.3g}",
        ]


def export_model(
    run: Run,
    out: Path,
    *,
    form: Form = "trainable",
    clips: int | None = None,
    opset: int | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write a model to `out`, run the file beside the model, and leave it there only where both agree.

    Input `frames` (clips, t, 3, h, w) float32 is normalised as the recipe says; output `logits` (clips, k), of models
    with a second classifier `noun_logits` too. Classes, recipe and normalisation lie in the file (`model_facts`).

    Args:
        run: weights with their recipe.
        out: .onnx, or .pt2 for `torch.export.load`.
        form: "trainable" computes everything, masks included; "dynamic" skips.
        clips: of every call; None leaves it open.
        opset: of ONNX; None: what this PyTorch writes best.
        tolerance: largest difference allowed, over the largest logit.

    Raises:
        UsageError: nothing that can be exported, another ending, or the extra is not installed.
        ExportError: it cannot be traced or translated, or the file differs from the model.
        CheckpointError: weights that do not fit.
    """
    _check_request(run, out, form=form, clips=clips, opset=opset, tolerance=tolerance)
    names = class_names(run)
    num_classes = len(names) if names else known_classes(run.recipe.data)
    if num_classes is None:
        raise UsageError(f"{run.weights}: does not say how many classes it has; add --set data.num_classes=K.")
    model = load_model(run, num_classes=num_classes)
    if form == "dynamic":
        model = METHODS[run.recipe.method].make_dynamic(model).eval()
    traced = _Outputs(model).eval()
    facts = model_facts(run, names, form=form)

    part = out.with_name(out.name + ".part")
    _remove(part)
    try:
        part.mkdir()
        program = _trace(traced, run, clips)
        if out.suffix == ".onnx":
            _write_onnx(program, part / out.name, facts=facts, outputs=traced.names, opset=opset)
            call, checked_by = _onnx_runner(part / out.name), "onnxruntime"
        else:
            _write_program(program, part / out.name, facts=facts)
            call, checked_by = _program_runner(part / out.name), "torch.export.load"
        difference, scale, num_checked = _compare(call, traced, run, CHECKED_CLIPS if clips is None else (clips,))
        if not difference <= tolerance * scale:  # nor is NaN
            raise ExportError(
                f"{out}: not written: {checked_by} gives logits that differ from the model's by {difference:.1e}, more "
                f"than {tolerance:g} of the largest, {scale:.3g}. Where tokens or channels are chosen, rounding can "
                "exchange near ties: allow more with --tolerance, or export the other format."
            )
        num_bytes = sum(file.stat().st_size for file in part.iterdir())
        for file in sorted(part.iterdir(), key=lambda file: file.name == out.name):  # the model last
            file.replace(out.with_name(file.name))
    finally:
        _remove(part)
    return Exported(
        path=out,
        form=form,
        num_bytes=num_bytes,
        clips=clips,
        difference=difference,
        scale=scale,
        num_checked=num_checked,
        checked_by=checked_by,
    )


def model_facts(run: Run, names: Sequence[str] | None, *, form: Form) -> dict[str, str]:
    """What a program needs to know to feed the model and to read its answer, as texts; lists are JSON."""
    recipe, data = run.recipe, run.recipe.data
    facts = {
        "method": recipe.method,
        "recipe_name": recipe.name,
        "form": form,
        "input": "frames (clips, time, RGB, height, width) float32, (pixel / 255 - mean) / std",
        "num_frames": str(data.num_frames),
        "sampler": data.train_sampler,
        "resize": str(recipe.eval_resize),
        "crop": str(recipe.eval_crop),
        "mean": json.dumps(data.mean),
        "std": json.dumps(data.std),
        "average": recipe.eval.average,
        "recipe": dump_recipe(recipe),
        "vidmodels": vidprep.__version__,
        "torch": torch.__version__,
    }
    return facts | ({"classes": json.dumps(list(names), ensure_ascii=False)} if names else {})


def check_export_packages() -> None:
    """ONNX needs packages that PyTorch does not bring.

    Raises:
        UsageError: names those that are missing.
    """
    from importlib.util import find_spec

    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"writing ONNX needs {', '.join(missing)}: pip install '.[export]'; .pt2 files need nothing more."
        )


def _check_request(run: Run, out: Path, *, form: Form, clips: int | None, opset: int | None, tolerance: float) -> None:
    if form not in get_args(Form):
        raise UsageError(f"--form is {' or '.join(get_args(Form))}, got {form!r}.")
    if out.suffix not in (".onnx", ".pt2") or not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: expected a name ending in .onnx or .pt2, in a folder that exists.")
    if out.is_dir():
        raise UsageError(f"{out}: a folder has this name; give another one.")
    if clips is not None and clips < 1:
        raise UsageError(f"--clips is a number from 1 on, or dynamic; got {clips}.")
    if opset is not None and out.suffix != ".onnx":
        raise UsageError("--opset is for .onnx files.")
    if not tolerance > 0:
        raise UsageError(f"--tolerance must be above 0, got {tolerance:g}.")
    method = METHODS[run.recipe.method]
    if run.recipe.data.fit == "pad":
        raise UsageError(
            f"{method.name} finds any number of boxes, and what it computes in a frame follows from the frame before, "
            "which no fixed list of operators can say; use it from Python (vidmodels.streams) or `vidmodels detect`."
        )
    if form == "dynamic" and method.export_obstacle:
        raise UsageError(
            f"the dynamic form of {method.name} cannot be exported: {method.export_obstacle}. Export its trainable "
            "form (--form trainable), which gives the same answers and computes everything."
        )
    if out.suffix == ".onnx":
        check_export_packages()


class _Outputs(nn.Module):
    """A model that gives a tuple of named tensors: what can be traced."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names = ("logits", "noun_logits") if getattr(model, "noun_head", None) is not None else ("logits",)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        output = self.model(frames)
        values = {"logits": output.logits, **output.aux}
        return tuple(values[name] for name in self.names)


def _random_clips(run: Run, number: int, *, seed: int) -> Tensor:
    side = run.recipe.eval_crop
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, run.recipe.data.num_frames, 3, side, side, generator=generator)


def _trace(model: _Outputs, run: Run, clips: int | None) -> torch.export.ExportedProgram:
    frames = _random_clips(run, clips or EXAMPLE_CLIPS, seed=0)
    open_axis = {"frames": {0: torch.export.Dim(CLIPS_AXIS, min=1)}} if clips is None else None
    with torch.no_grad():
        model(frames)  # tables that are made at the first call become constants; made while tracing they would not
        try:
            with _quiet():
                return torch.export.export(model, (frames,), dynamic_shapes=open_axis, strict=False)
        except Exception as error:  # what cannot be traced fails in any way
            # `len(tensor)` in a forward is a plain number, and so closes the axis; `tensor.shape[0]` does not.
            hint = "; with --clips 1 the number of clips need not be left open" if clips is None else ""
            raise ExportError(
                f"{run.recipe.method}/{run.recipe.name}: cannot be traced as a fixed list of operators "
                f"({_first(error)}){hint}."
            ) from error


def _write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    *,
    facts: Mapping[str, str],
    outputs: Sequence[str],
    opset: int | None,
) -> None:
    import onnx

    try:
        with _quiet():
            translated = torch.onnx.export(
                program,
                input_names=["frames"],
                output_names=list(outputs),
                opset_version=opset,
                custom_translation_table=_translations(),
                verbose=False,
            )
        assert translated is not None  # noqa: S101 - it is where no file is named
        translated.save(path)
    except Exception as error:  # foreign code that fails in any way
        raise ExportError(
            f"{facts['method']}/{facts['recipe_name']}: cannot be translated to ONNX ({_first(error)}); write a .pt2 "
            "file instead."
        ) from error
    proto = onnx.load(str(path), load_external_data=False)
    written = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if opset is not None and written != opset:
        raise ExportError(f"--opset {opset}: this PyTorch writes the model in opset {written} only; leave --opset out.")
    _name_clips_axis(proto.graph)
    onnx.helper.set_model_props(proto, dict(facts))
    onnx.save(proto, str(path))
    onnx.checker.check_model(str(path))


def _write_program(program: torch.export.ExportedProgram, path: Path, *, facts: Mapping[str, str]) -> None:
    try:
        with _quiet():
            torch.export.save(program, path, extra_files={FACTS_FILE: json.dumps(facts)})
    except Exception as error:  # foreign code that fails in any way
        raise ExportError(
            f"{facts['method']}/{facts['recipe_name']}: cannot be saved as a torch program ({_first(error)})."
        ) from error


def _name_clips_axis(graph: Any) -> None:
    """Call the open axis "clips" wherever the tracer's own name for it stands, such as in 8*s41."""
    traced = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if not traced:
        return
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{re.escape(traced)}\b", CLIPS_AXIS, dim.dim_param)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators that PyTorch's own translation does not know. ONNX's TopK gives equal values in the order of their
    places, which is a stable sort.
    """
    import onnx
    from onnxscript import opset18

    op: Any = opset18  # its types are those of numbers, not of the names in a graph

    def minus(axis: int) -> Any:
        return op.Constant(value_ints=[-axis])

    def stable_sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        size = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
        return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)

    def searchsorted(ascending: Any, values: Any, **_: Any) -> Any:
        is_below = op.Less(op.Unsqueeze(ascending, minus(2)), op.Unsqueeze(values, minus(1)))
        return op.ReduceSum(op.Cast(is_below, to=INT64), minus(1), keepdims=0)

    def cummax(x: Any, dim: int) -> Any:
        size, order = int(x.shape[dim]), list(range(len(x.shape)))
        order[dim], order[-1] = order[-1], order[dim]  # its axis to the end, and back again
        is_before = op.Constant(value=onnx.numpy_helper.from_array(np.tri(size, dtype=bool)))
        x = op.Transpose(x, perm=order)
        first = op.Slice(x, op.Constant(value_ints=[0]), op.Constant(value_ints=[1]), minus(1))
        earlier = op.Where(is_before, op.Unsqueeze(x, minus(2)), op.Unsqueeze(first, minus(2)))
        largest = op.ReduceMax(earlier, minus(1), keepdims=0)
        places = op.ArgMax(earlier, axis=-1, keepdims=0, select_last_index=1)
        return op.Transpose(largest, perm=order), op.Transpose(places, perm=order)

    aten = torch.ops.aten
    return {
        aten.sort.stable: stable_sort,
        aten.searchsorted.Tensor: searchsorted,
        aten.cummax.default: cummax,
    }


def _onnx_runner(path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class of their own
        raise ExportError(f"{path.name}: onnxruntime does not take the model ({_first(error)}).") from error
    return lambda frames: [torch.from_numpy(array) for array in session.run(None, {"frames": frames.numpy()})]


def _program_runner(path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    with _quiet():
        module = torch.export.load(path).module()
    return lambda frames: list(module(frames))


@torch.no_grad()
def _compare(
    call: Callable[[Tensor], Sequence[Tensor]], model: _Outputs, run: Run, numbers: Sequence[int]
) -> tuple[float, float, int]:
    """Largest difference of the file's outputs from the model's, the model's largest output, and the clips compared."""
    difference = scale = 0.0
    for seed, number in enumerate(numbers, start=1):
        frames = _random_clips(run, number, seed=seed)
        for found, expected in zip(call(frames), model(frames), strict=True):
            if found.shape != expected.shape:
                raise ExportError(
                    f"the file gives {tuple(found.shape)} for {number} clips, not {tuple(expected.shape)}."
                )
            difference = max(difference, float((found - expected).abs().max()))
            scale = max(scale, float(expected.abs().max()))
    return difference, scale, sum(numbers)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the tracer says about its own insides, a whole graph where it fails: the error names the reason."""
    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first(error: BaseException) -> str:
    """What the innermost cause says first, without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"<OpOverload\(op='([^']*)'[^>]*>", r"\1", str(error))  # an operator by its name
    text = re.sub(r"\x1b\[[0-9;]*m|<[^<>]*>", "", text).strip()
    return f"{type(error).__name__}: {' '.join((text.splitlines() or ['no reason given'])[0].split())[:200]}"


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)
