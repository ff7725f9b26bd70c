"""One tiny model and one nest for all of chaos."""

from __future__ import annotations

import pytest

from tests.chaos import nest
from tests.models import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    nest.start_nest()
    return tiny.folder(tmp_path_factory.mktemp("chaos") / "tiny")
