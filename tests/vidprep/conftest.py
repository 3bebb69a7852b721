from collections.abc import Callable

import pytest

from vidprep.miniature import Miniature, make_miniature

Make = Callable[[str], Miniature]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Miniatures by the name of their data set; each is made once for all tests, and nobody writes into it."""
    made: dict[str, Miniature] = {}

    def make_once(name: str) -> Miniature:
        if name not in made:
            made[name] = make_miniature(name, tmp_path_factory.mktemp("miniatures") / name)
        return made[name]

    return make_once
