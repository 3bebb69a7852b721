"""Trained models as folders that others load in a line, on the Hugging Face Hub or beside it.

    FOLDER/config.json          what it is, for the Hub and for people
    FOLDER/model.safetensors    the weights; recipe, classes and validation figures lie in its header, and count
    FOLDER/recipe.toml          the recipe, to read
    FOLDER/README.md            the model card

The layout is the one of `huggingface_hub.PyTorchModelHubMixin`. Models are not the mixin's: they are wrapped, so that a
method stays a module and nothing else.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData, ModelHubMixin, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import nn

import vidprep
from vidmodels.checkpoints import CheckpointError, read_metadata, save_weights, write_atomically
from vidmodels.cost import count_cost
from vidmodels.data import known_classes
from vidmodels.evaluate import choose_device
from vidmodels.methods import METHODS
from vidmodels.predict import Classifier, Prediction
from vidmodels.recipes import dump_recipe
from vidmodels.runs import Run, class_names, find_run, load_model
from vidmodels.types import Recipe
from vidprep.errors import UsageError, VidprepError
from vidprep.load.transforms import EvalTransform

__all__ = ["HubError", "PretrainedModel", "from_pretrained", "push", "save_pretrained"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
RECIPE_FILE = "recipe.toml"
NETWORK_ERROR: type[BaseException] = HfHubHTTPError.__mro__[1]
"""What the Hub's client raises when it reaches nobody: the base of its own errors, in the library it is built on."""
LIBRARY = "vidmodels"


class HubError(VidprepError):
    """The Hub did not give, or take, a model."""


class PretrainedModel(ModelHubMixin):
    """A model with its recipe and the names of its classes; `from_pretrained` makes one.

    Attributes:
        model: the trainable form, in evaluation mode: `forward(frames (n, t, 3, h, w)) -> Output`.
        recipe: how it was trained, and how a video is scored.
        classes: their names, by the model's numbers; None: nobody knows them.
        metadata: what the weights say of themselves, such as `val`, the validation figures as JSON.
    """

    def __init__(
        self, *, model: nn.Module, recipe: Recipe, classes: tuple[str, ...] | None, metadata: Mapping[str, str]
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.classes = classes
        self.metadata = dict(metadata)
        self._classifier: Classifier | None = None

    @classmethod
    def of_run(cls, run: Run, *, device: str | None = None) -> Self:
        """The model of a run folder, a folder of `save_pretrained`, or a file of weights.

        Raises:
            UsageError: nobody knows how many classes it has.
            CheckpointError: broken, or weights of another model.
        """
        names = class_names(run)
        num_classes = len(names) if names else known_classes(run.recipe.data)
        if num_classes is None:
            raise UsageError(f"{run.weights}: does not say how many classes it has; add --set data.num_classes=K.")
        model = load_model(run, num_classes=num_classes, device=choose_device(device))
        return cls(model=model, recipe=run.recipe, classes=names, metadata=read_metadata(run.weights))

    @property
    def transform(self) -> EvalTransform:
        """From frames (t, 3, h, w) uint8 of any size to (1, t, 3, crop, crop), as the model wants them: the centre."""
        data = self.recipe.data
        return EvalTransform(
            resize=self.recipe.eval_resize,
            crop=self.recipe.eval_crop,
            antialias=data.antialias,
            resize_floats=data.resize_floats,
            mean=data.mean,
            std=data.std,
        )

    def predict(self, video: Path | str, *, top: int = 5) -> Prediction:
        """The likeliest classes of a video file, by the form that skips, scored as the recipe's evaluation does.

        Raises:
            UsageError: the classes have no names, or it is a detector.
            MissingVideo: no such file. One that does not decode gives a prediction with its `fault`.
        """
        if self.recipe.data.fit == "pad":
            raise UsageError("a detector finds boxes, not classes of a video; use `vidmodels detect`.")
        if self.classes is None:
            raise UsageError("this model does not say what its classes are called; set `classes`.")
        if self._classifier is None:
            self._classifier = Classifier(
                model=METHODS[self.recipe.method].make_dynamic(self.model).eval(),
                recipe=self.recipe,
                classes=self.classes,
                device=next(self.model.parameters()).device,
            )
        return self._classifier.predict_file(Path(video), top=top)

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """README.md: what it is, what it reached, what it costs, how it is used."""
        recipe = self.recipe
        data = ModelCardData(
            library_name=LIBRARY,
            pipeline_tag="object-detection" if recipe.data.fit == "pad" else "video-classification",
            tags=[recipe.method, "video", "efficient inference"],
        )
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{self._card_text()}")

    def _card_text(self) -> str:
        recipe, clip = self.recipe, self.recipe.data
        values = sum(parameter.numel() for parameter in self.model.parameters())
        paper = METHODS[recipe.method].paper
        facts = [
            ("method", f"[{recipe.method}]({paper})" if paper.startswith("http") else f"{recipe.method}: {paper}"),
            ("recipe", f"`{recipe.method}/{recipe.name}` ({RECIPE_FILE})"),
            ("data set", f"`{clip.dataset}`" + (f", {len(self.classes)} classes" if self.classes else "")),
            ("clip", f"{clip.num_frames} frames of {recipe.eval_crop} x {recipe.eval_crop}, `{clip.train_sampler}`"),
            ("scored by", f"{recipe.eval.num_clips} clips x {recipe.eval.num_crops} crops"),
            ("parameters", f"{values / 1e6:.2f} M"),
        ]
        if clip.fit != "pad":
            frames = torch.zeros(1, clip.num_frames, 3, recipe.eval_crop, recipe.eval_crop)
            macs = count_cost(self.model, frames.to(next(self.model.parameters()).device)).macs
            facts.append(("GMACs of a clip", f"{macs / 1e9:.4g}, trainable form (everything is computed)"))
        facts += [(f"val {name}", f"{value:.4g}") for name, value in json.loads(self.metadata.get("val", "{}")).items()]
        table = "\n".join(f"| {name} | {value} |" for name, value in facts)
        return (
            f"# {recipe.method}/{recipe.name}\n\n| | |\n|---|---|\n{table}\n\n"
            "`val` figures are of the validation split at the epoch that these weights are of, one clip and crop of "
            "each video.\n\n```python\nimport vidmodels\n\n"
            'model = vidmodels.from_pretrained("THIS/REPOSITORY")\n'
            'print("\\n".join(model.predict("clip.mp4").lines))\n```\n\n'
            f"Written by vidmodels {vidprep.__version__}.\n"
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        recipe = dump_recipe(self.recipe)
        header = self.metadata | {"method": self.recipe.method, "recipe": recipe}
        if self.classes is not None:
            header["classes"] = json.dumps(self.classes)
        config = {
            "library_name": LIBRARY,
            "vidmodels_version": vidprep.__version__,
            "method": self.recipe.method,
            "recipe": self.recipe.name,
            "num_frames": self.recipe.data.num_frames,
            "crop": self.recipe.eval_crop,
            "id2label": {str(index): name for index, name in enumerate(self.classes or ())},
        }
        save_weights(save_directory / WEIGHTS_FILE, self.model.state_dict(), header)
        for name, text in (
            (RECIPE_FILE, recipe),
            (CONFIG_FILE, json.dumps(config, indent=1, ensure_ascii=False) + "\n"),
        ):
            content = text.encode()
            write_atomically(save_directory / name, lambda file, content=content: file.write(content))  # type: ignore[misc]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "PretrainedModel":
        """As the function of this name: here every file is of one commit, and errors say what to do."""
        return from_pretrained(pretrained_model_name_or_path, **options)


def from_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    device: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> PretrainedModel:
    """A trained model, ready to predict.

    Args:
        source: a run folder, a folder of `save_pretrained`, a file of weights; or a repository of the Hub, NAME/MODEL.
            What exists here is not looked for there.
        revision: commit, tag or branch of the repository; a commit pins it. None: the newest of its main branch.
        device: None takes a GPU where there is one.
        cache_dir: where repositories are kept; None: the Hub's usual cache.
        force_download: fetch again what is in the cache.
        local_files_only: take what is in the cache, and ask nobody.
        token: of the Hub, for what is not public; None: the one of `hf auth login`.

    Raises:
        UsageError: no such folder, file, repository or revision, or a name that is none of these.
        HubError: the Hub cannot be reached, refuses, or holds no model of ours there.
        CheckpointError: broken, or weights of another model.
    """
    if Path(source).expanduser().exists():
        if revision is not None:
            raise UsageError(f"{source}: is on this machine, and a revision is for repositories of the Hub.")
        return PretrainedModel.of_run(find_run(Path(source).expanduser()), device=device)
    name = str(source)
    if name.startswith((".", "~", "/")) or name.count("/") != 1 or name.endswith((".safetensors", ".pth", ".pt")):
        raise UsageError(f"{name}: no such folder or file, and a repository of the Hub is called NAME/MODEL.")
    folder = _download(
        name,
        revision=revision,
        cache_dir=cache_dir,
        force_download=force_download,
        local_files_only=local_files_only,
        token=token,
    )
    missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / file).is_file()]
    if missing:
        raise HubError(f"{name}: no {' and no '.join(missing)} there; it is no model that vidmodels saved.")
    _check_config(folder / CONFIG_FILE, name)
    return PretrainedModel.of_run(find_run(folder / WEIGHTS_FILE), device=device)


def save_pretrained(target: PretrainedModel | str | Path, folder: str | Path) -> Path:
    """Write a model, or that of a run, as a folder that `from_pretrained` and the Hub take.

    Raises:
        UsageError: as for `from_pretrained`; or the folder holds something else.
    """
    model = target if isinstance(target, PretrainedModel) else from_pretrained(target, device="cpu")
    folder = Path(folder)
    ours = {CONFIG_FILE, WEIGHTS_FILE, RECIPE_FILE, "README.md"}
    if folder.is_file() or (folder.is_dir() and {path.name for path in folder.iterdir()} - ours):
        raise UsageError(f"{folder}: expected a new folder, or one that holds nothing but such a model.")
    model.save_pretrained(folder)
    return folder


def push(
    target: PretrainedModel | str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Put a model, or that of a run, on the Hub; the URL of the commit.

    Args:
        target: a model, or what `from_pretrained` takes.
        repo_id: NAME/MODEL; made where it is not there.
        private: of a new repository; None: as the organisation has it.
        revision: branch; None: main.
        token: None: the one of `hf auth login`.

    Raises:
        UsageError: as for `from_pretrained`; or no name of a repository.
        HubError: not logged in, refused, or not reached.
    """
    model = target if isinstance(target, PretrainedModel) else from_pretrained(target, device="cpu")
    try:
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as scratch:
            folder = save_pretrained(model, Path(scratch) / "model")
            api.create_repo(repo_id=repo_id, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=f"Add {model.recipe.name}"
            )
    except HFValidationError as error:
        raise UsageError(f"{repo_id}: no name of a repository, which is NAME/MODEL ({error}).") from error
    except LocalTokenNotFoundError as error:
        raise HubError(f"{repo_id}: the Hub wants to know who you are; run `hf auth login` first.") from error
    except HfHubHTTPError as error:
        raise HubError(f"{repo_id}: {_refusal(error)}") from error
    except (OfflineModeIsEnabled, NETWORK_ERROR, OSError) as error:
        raise HubError(f"{repo_id}: the Hub at {constants.ENDPOINT} cannot be reached ({error}).") from error
    return str(done)


def _download(name: str, *, revision: str | None, **options: Any) -> Path:
    """The files of one commit."""
    where = name if revision is None else f"{name} at {revision}"
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, RECIPE_FILE], **options
            )
        )
    except HFValidationError as error:
        raise UsageError(f"{name}: no such folder or file, and no name of a repository ({error}).") from error
    except GatedRepoError as error:
        raise HubError(f"{where}: its owner has to let you in; ask on its page, then run `hf auth login`.") from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"{name}: no such folder or file here, and no such repository on the Hub; a private one needs "
            "`hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(f"{name}: has no revision {revision}; give a commit, a tag or a branch of it.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise HubError(
            f"{where}: not in the cache, and the Hub at {constants.ENDPOINT} was not asked or not reached; load it "
            "once with a network, or give a folder."
        ) from error
    except (EntryNotFoundError, HfHubHTTPError) as error:
        raise HubError(f"{where}: {_refusal(error)}") from error


def _refusal(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "the Hub does not let you; run `hf auth login` with a token that may."
    return f"the Hub refuses ({' '.join(str(error).split())[:200]})."


def _check_config(path: Path, name: str) -> None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{name}: its {CONFIG_FILE} is no JSON ({error}).") from error
    if not isinstance(config, dict) or config.get("library_name") != LIBRARY:
        raise HubError(f"{name}: a model of another library; vidmodels loads what `vidmodels push` wrote.")
    if config.get("method") not in METHODS:
        raise HubError(f"{name}: method {config.get('method')!r} is not known here; it may need a newer vidmodels.")
