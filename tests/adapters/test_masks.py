"""`ringattn.masks` offers every maker, and draws an example of each."""

from __future__ import annotations

import pytest

from ringattn import masks
from ringattn_core.plan import masks as core


def test_every_maker_is_public_and_draws_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert masks.__all__ == core.__all__
    assert sorted(masks.examples()) == sorted(set(core.__all__) - {"Mask"})
    assert masks.main(["tree"]) == 0
    assert "█ █ █" in capsys.readouterr().out
    assert masks.main(["cross"]) == 2
    assert "No maker of masks is named cross" in capsys.readouterr().err
