"""What is explicit leaves this software without its shapes: the picture that is stored is the blurred one."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from erasure_core.boundary.report_card import STRIP_SIDE
from erasure_core.boundary.thumbnails import SIDE, picture_uri


def contrast(uri: str, side: int) -> float:
    """The spread of a stored picture's values, away from its edges; of a checkerboard at most half of 255."""
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as stored:
        assert stored.size == (side, side)
        inside = np.asarray(stored.convert("L"), np.float64)[side // 8 : -side // 8, side // 8 : -side // 8]
    return float(inside.std())


@pytest.mark.parametrize("side", [SIDE, STRIP_SIDE])
@pytest.mark.parametrize("squares", [8, 16])
def test_a_blurred_checkerboard_is_grey(side: int, squares: int) -> None:
    place = torch.arange(512) * squares // 512 % 2
    board = (255 * (place[:, None] ^ place)).to(torch.uint8).expand(3, -1, -1)
    assert contrast(picture_uri(board, True, side), side) < 5
    assert contrast(picture_uri(board, False, side), side) > 80, "it is the blur that takes it away"
