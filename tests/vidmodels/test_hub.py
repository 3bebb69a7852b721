"""Models as folders and as repositories of the Hub, which here is a folder too, or not there."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

import vidmodels
from tests.videos import write_numbered_video
from tests.vidmodels.shards import TINY
from tests.vidmodels.test_cli import call
from vidmodels import hub
from vidmodels.checkpoints import CheckpointError, load_checkpoint, read_metadata, save_weights
from vidmodels.data import clip_of_file, clips_of_file
from vidmodels.hub import HubError, PretrainedModel, from_pretrained, push, save_pretrained
from vidmodels.methods import METHODS
from vidmodels.recipes import dump_recipe, load_recipe
from vidmodels.runs import find_run
from vidprep.decode import open_video
from vidprep.errors import UsageError

RECIPE = load_recipe("taps/toy", [*TINY, "eval.num_clips=2"])
CLASSES = ("zero", "one", "two", "drei")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training leaves behind, as far as it is read here."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    state = METHODS["taps"].build(RECIPE.model, 4).state_dict()
    header = {"method": "taps", "recipe": dump_recipe(RECIPE), "classes": json.dumps(CLASSES)}
    save_weights(folder / "best.safetensors", state, header | {"val": json.dumps({"top1": 62.5})})
    (folder / "recipe.toml").write_text(dump_recipe(RECIPE))
    return folder


@pytest.fixture(scope="module")
def package(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pretrained(run_folder, tmp_path_factory.mktemp("package") / "model")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_numbered_video(path, num_frames=12, width=64, height=48)
    return path


def test_a_saved_model_comes_back_with_its_weights_recipe_and_classes(run_folder: Path, package: Path) -> None:
    model = vidmodels.from_pretrained(package, device="cpu")
    assert model.recipe == RECIPE
    assert model.classes == CLASSES
    expected = load_checkpoint(run_folder / "best.safetensors")
    assert {name: tensor.tolist() for name, tensor in model.model.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }
    assert not model.model.training
    again = save_pretrained(model, package)  # over itself
    assert read_metadata(again / "model.safetensors") == read_metadata(run_folder / "best.safetensors")


def test_the_folder_is_what_the_hub_expects_of_a_model(package: Path) -> None:
    assert sorted(path.name for path in package.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "recipe.toml",
    ]
    config = json.loads((package / "config.json").read_text())
    assert (config["library_name"], config["method"]) == ("vidmodels", "taps")
    assert config["id2label"] == {"0": "zero", "1": "one", "2": "two", "3": "drei"}
    card = huggingface_hub.ModelCard.load(package / "README.md")
    assert card.data.pipeline_tag == "video-classification"
    assert "| val top1 | 62.5 |" in card.text
    assert "| GMACs of a clip | 0.00" in card.text


def test_other_commands_take_the_folder_for_a_run(package: Path, video: Path) -> None:
    assert find_run(package).weights == package / "model.safetensors"
    assert call("predict", video, "--checkpoint", package, "--device", "cpu") == 0


def test_it_predicts_what_the_command_does(run_folder: Path, video: Path) -> None:
    model = from_pretrained(run_folder, device="cpu")
    with torch.no_grad():
        logits = model.model(clips_of_file(RECIPE, video)).logits.double().mean(0)
    found = model.predict(video, top=2)
    best = logits.argsort(descending=True)[:2].tolist()
    assert found.classes == tuple(CLASSES[index] for index in best)
    assert found.probabilities == pytest.approx(logits.softmax(0)[best].tolist(), abs=1e-5)


def test_its_transform_makes_the_clip_that_the_model_is_scored_on(run_folder: Path, video: Path) -> None:
    model = from_pretrained(run_folder, device="cpu")
    with open_video(video) as reader:
        frames = reader.get_frames_at([1, 4, 7, 10]).to_torch()
    torch.testing.assert_close(model.transform(frames)[0], clip_of_file(RECIPE, video))


def test_a_repository_is_loaded_at_the_revision_asked_for(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any, list[str]]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        asked.append((name, revision, allow_patterns))
        return str(package)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert from_pretrained("me/model", revision="v1.0", device="cpu").classes == CLASSES
    assert PretrainedModel.from_pretrained("me/model").classes == CLASSES  # the mixin's own way
    assert [entry[:2] for entry in asked] == [("me/model", "v1.0"), ("me/model", None)]
    assert asked[0][2] == ["config.json", "model.safetensors", "recipe.toml"]


def http_error(kind: Any, status: int) -> Exception:
    """As the Hub's client makes them; it is built on httpx or on what came after."""
    client = _client()
    response = client.Response(status, request=client.Request("GET", "http://hub"))
    error: Exception = kind("no", response=response)
    return error


def _client() -> Any:
    return importlib.import_module(hub.NETWORK_ERROR.__module__.partition(".")[0])


@pytest.mark.parametrize(
    ("kind", "status", "error", "sentence"),
    [
        ("RepositoryNotFoundError", 404, UsageError, "me/model: no such folder or file here, and no such repository"),
        ("RevisionNotFoundError", 404, UsageError, "me/model: has no revision v9; give a commit, a tag or a branch"),
        ("GatedRepoError", 403, HubError, "me/model at v9: its owner has to let you in"),
        ("HfHubHTTPError", 401, HubError, "me/model at v9: the Hub does not let you; run `hf auth login`"),
        ("HfHubHTTPError", 500, HubError, r"me/model at v9: the Hub refuses \(no"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    kind: str, status: int, error: type[Exception], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise http_error(getattr(huggingface_hub.errors, kind), status)

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(error, match=sentence):
        from_pretrained("me/model", revision="v9")


def test_without_a_network_only_the_cache_is_left(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"me/model: not in the cache, and the Hub at .* was not asked or not reached"):
        from_pretrained("me/model", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize("name", ["./model", "a/b/c", "model", "runs/best.safetensors"])
def test_what_is_no_repository_is_not_looked_for(name: str) -> None:
    with pytest.raises(UsageError, match=r"no such folder or file, and a repository of the Hub is called NAME/MODEL"):
        from_pretrained(name)


def test_a_name_that_cannot_be_a_repository_is_refused() -> None:
    with pytest.raises(UsageError, match="no such folder or file, and no name of a repository"):
        from_pretrained("me/mo del", local_files_only=True)


def test_revisions_are_for_repositories(package: Path) -> None:
    with pytest.raises(UsageError, match="is on this machine, and a revision is for repositories"):
        from_pretrained(package, revision="main")


def test_models_of_others_are_refused(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(package, folder)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(folder))
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(HubError, match="me/model: a model of another library"):
        from_pretrained("me/model")
    (folder / "config.json").write_text('{"library_name": "vidmodels", "method": "newer"}')
    with pytest.raises(HubError, match="method 'newer' is not known here"):
        from_pretrained("me/model")
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"its config\.json is no JSON"):
        from_pretrained("me/model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(HubError, match=r"no model\.safetensors there; it is no model that vidmodels saved"):
        from_pretrained("me/model")


def test_a_model_is_not_saved_among_other_files(package: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="expected a new folder, or one that holds nothing but such a model"):
        save_pretrained(package, tmp_path)


def test_pushing_uploads_the_folder(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[Any] = []

    def create(_: Any, *, repo_id: str, private: bool | None, exist_ok: bool) -> None:
        done.append((repo_id, private, exist_ok))

    def upload(_: Any, *, repo_id: str, folder_path: Path, revision: str | None, commit_message: str) -> str:
        done.append((repo_id, revision, commit_message, sorted(path.name for path in folder_path.iterdir())))
        return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert call("push", run_folder, "me/model", "--private", "--revision", "next") == 0
    assert capsys.readouterr().out == "https://hub/me/model/commit/1\n"
    files = ["README.md", "config.json", "model.safetensors", "recipe.toml"]
    assert done == [("me/model", True, True), ("me/model", "next", "Add toy", files)]


def test_pushing_without_the_right_to_says_so(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = from_pretrained(run_folder, device="cpu")

    def refuse(error: Exception) -> None:
        def create(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)

    refuse(http_error(huggingface_hub.errors.HfHubHTTPError, 401))
    with pytest.raises(HubError, match="me/model: the Hub does not let you; run `hf auth login`"):
        push(model, "me/model")
    refuse(huggingface_hub.errors.LocalTokenNotFoundError("no token"))
    with pytest.raises(HubError, match="the Hub wants to know who you are"):
        push(model, "me/model")
    refuse(_client().ConnectError("connection refused"))
    with pytest.raises(HubError, match=r"the Hub at .* cannot be reached \(connection refused\)"):
        push(model, "me/model")


def test_the_package_command_says_how_to_load_it(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert call("package", run_folder, "--out", out) == 0
    assert capsys.readouterr().out == f"{out}: load it with vidmodels.from_pretrained('{out}')\n"
    assert from_pretrained(out, device="cpu").classes == CLASSES
