"""The figures of a run in Weights & Biases, beside `log.jsonl` and TensorBoard."""

import contextlib
import dataclasses
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidmodels.checkpoints import write_atomically
from vidmodels.types import Recipe
from vidprep.errors import MissingPackage, UsageError, VidprepError

__all__ = ["check_wandb", "reporting_to_wandb"]

Record = Mapping[str, Any]
"""Of an epoch, as `log.jsonl` has it."""

RUN_FILE = "wandb.json"
"""In the run folder: project and id, so that the run goes on as the same one."""


def check_wandb() -> None:
    """Raises MissingPackage where there is no wandb."""
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise MissingPackage("--wandb needs the `wandb` extra: pip install 'vidprep[wandb]'.") from error


@contextlib.contextmanager
def reporting_to_wandb(
    project: str | None, out: Path, recipe: Recipe, *, done: Sequence[Record]
) -> Iterator[Callable[[Record], None]]:
    """What takes the record of each epoch to a run of Weights & Biases, which ends with the block.

    WANDB_MODE=offline keeps everything under `out/wandb`, for `wandb sync`.

    Args:
        project: None: no record goes anywhere.
        out: the run folder; a run that goes on there goes on there, too.
        recipe: its settings.
        done: records of the epochs before; a run that only now comes there takes them along.

    Raises:
        UsageError: another project than the one where the run began, or nobody is logged in.
        MissingPackage: there is no wandb.
        VidprepError: the service cannot be reached.
    """
    if project is None:
        yield lambda record: None
        return
    check_wandb()
    import wandb

    known = _read(out / RUN_FILE)
    if known is not None and known["project"] != project:
        raise UsageError(
            f"{out}: this run is in the project {known['project']} of Weights & Biases, not in {project}; "
            f"go on with --wandb {known['project']}, or train into another folder."
        )
    run_id = secrets.token_hex(4) if known is None else known["id"]
    is_offline = wandb.setup().settings.mode == "offline"
    try:
        run = wandb.init(
            project=project,
            id=run_id,
            name=out.resolve().name,
            dir=str(out),
            config=dataclasses.asdict(recipe),
            resume=None if is_offline else "allow",  # offline nothing is asked; the id is what counts
            settings=wandb.Settings(console="off"),
        )
    except wandb.errors.UsageError as error:
        raise UsageError(
            f"Weights & Biases refuses ({_first_line(error)}); log in with `wandb login`, or set WANDB_MODE=offline."
        ) from error
    except wandb.errors.Error as error:
        raise VidprepError(
            f"Weights & Biases cannot be reached ({_first_line(error)}); set WANDB_MODE=offline, or leave out --wandb."
        ) from error
    with run:  # ends it, as failed where the block raises

        def report(record: Record) -> None:
            figures = {f"{part}/{name}": value for part in ("train", "val") for name, value in record[part].items()}
            run.log(
                {"epoch": record["epoch"], "lr": record["lr"], "seconds": record["seconds"], **figures},
                step=record["epoch"],
            )

        if known is None:
            content = json.dumps({"project": project, "id": run_id}, indent=1) + "\n"
            write_atomically(out / RUN_FILE, lambda file: file.write(content.encode()))
            for record in done:
                report(record)
        yield report


def _read(path: Path) -> dict[str, str] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"project": str(content["project"]), "id": str(content["id"])}
    except (ValueError, KeyError, TypeError) as error:
        raise VidprepError(
            f"{path}: not a run of Weights & Biases ({error}); delete it to begin another one."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
