import pytest

from vidprep.datasets import BUILDERS, DATASETS, get, info_text
from vidprep.errors import UnknownDataset


@pytest.mark.parametrize("name", DATASETS)
def test_info_is_one_screen_that_says_what_it_is_and_how_it_is_got(name: str) -> None:
    text, info = info_text(name), get(name)
    lines = text.splitlines()
    assert len(lines) <= 60
    assert all(len(line) <= 100 or "http" in line for line in lines)
    assert lines[0] == f"{name}: {info.title}"
    flat = " ".join(text.split())
    assert all(" ".join(part.split()) in flat for part in (info.description, info.licence, info.instructions))
    assert all(" ".join(trap.split()) in flat for trap in info.traps)
    assert all(f"{count:,}" in text for count in info.splits.values() if count)
    assert f"vidprep shard --dataset {name} --data-root ROOT" in text


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"toy", "toy_detection", "folder"}))
def test_published_sets_have_a_description_a_licence_and_traps(name: str) -> None:
    info = get(name)
    assert info.description
    assert info.licence
    assert info.homepage.startswith("http")
    assert info.paper.startswith("https://")
    assert info.traps
    assert name not in BUILDERS or f"vidprep split {name} --annotations" in info_text(name)


def test_info_of_an_unknown_set_names_the_nearest() -> None:
    with pytest.raises(UnknownDataset, match="did you mean jester"):
        info_text("jestr")


def test_access_is_said_in_words() -> None:
    assert "open: no form" in info_text("epic_kitchens")
    assert "after a form" in info_text("jester")
    assert "97 verbs, 300 nouns" in info_text("epic_kitchens")
    assert "a mirror swaps the classes 0<->1, 6<->7" in info_text("jester")
