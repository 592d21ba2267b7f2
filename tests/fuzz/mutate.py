"""Files changed as disks, editors and people change them."""

import json

from hypothesis import strategies as st

ODD = st.sampled_from(
    (None, True, -1, 0, 1.5, 10**400, "", " ", "x", "1", "\ud800", "\x00", "[b]", [], {}, [None], {"a": 1}, [[]])
)  # fmt: skip
PIECES = st.sampled_from(
    (b"", b"\n", b"\r", b"\x00", b"\xff", b"\xef\xbb\xbf", b'"', b",", b"\t", b"{", b"}", b"[", b"]", b":", b"null",
     b"NaN", b"-1", b"1e999", b'"\\ud800"', b"9" * 5000, b"[" * 2000, b">", b"\x1f\x8b\x08", "\u2028é".encode())
)  # fmt: skip


@st.composite
def damaged(draw, content):
    """The bytes of a file with up to three places cut out, doubled, overwritten or stuffed."""
    for _ in range(draw(st.integers(1, 3))):
        a, b = sorted((draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))))
        middle = draw(st.sampled_from((b"", content[a:b] * 2)) | PIECES | st.binary(max_size=4))
        content = content[:a] + middle + content[b:]
    return content


@st.composite
def altered(draw, value):
    """A JSON value with one value in it replaced, taken out or added."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 7)):
        key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        found = value.copy()
        match draw(st.sampled_from(("into", "into", "into", "into", "odd", "out"))):
            case "into":
                found[key] = draw(altered(value[key]))
            case "odd":
                found[key] = draw(ODD)
            case "out":
                del found[key]
        return found
    return draw(ODD)


def as_bytes(value):
    """JSON as a file holds it; lone surrogates and large numbers included."""
    return json.dumps(value).encode()
