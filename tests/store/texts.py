"""Documents of every kind a store may be given, drawn by seed."""

from __future__ import annotations

import random

from tests.conftest import speech

_CODE = "def f(x):\n\treturn {x: [x ** 2 for x in range(10)]}  # <eos> <pad>\r\n"
_EMOJI = "👩‍👩‍👧‍👦🏳️‍🌈🇨🇭é\u0301ñ"
_CJK = "日本語の文章。中文文本,한국어"
_CONTROL = "\x00\x01\x07\x1b[31m\x7f\u200b\u202e\ufeff\u2028"


def mixed_text(seed: int) -> str:
    """Prose, code, tables, numbers, emoji, CJK, control characters, one character, or nothing."""
    draw = random.Random(seed)
    kinds = [
        lambda: speech(seed, draw.randrange(1, 40)),
        lambda: _CODE * draw.randrange(1, 4),
        lambda: "\n".join("|".join(str(draw.randrange(10**6)) for _ in range(3)) for _ in range(4)),
        lambda: " ".join(f"{draw.gauss(0, 1e6):.6g}" for _ in range(draw.randrange(1, 20))),
        lambda: "".join(draw.choice(_EMOJI) for _ in range(draw.randrange(1, 30))),
        lambda: "".join(draw.choice(_CJK) for _ in range(draw.randrange(1, 60))),
        lambda: "".join(draw.choice(_CONTROL + "a \n") for _ in range(draw.randrange(1, 30))),
        lambda: chr(draw.choice([9, 10, 13, 32, 65, 233, 8364, 0x1F600])),
        lambda: "",
        lambda: "".join(chr(draw.randrange(0x20, 0xD7FF)) for _ in range(20)),
    ]
    return kinds[seed % len(kinds)]()
