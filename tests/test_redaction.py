import pytest

from dualform.redaction import redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/store", "s3://bucket/store"),
        ("s3://KEY:se/cr@t@bucket/store", "s3://***@bucket/store"),
        ("simplecache::ftp://me:pw@host/x", "simplecache::ftp://***@host/x"),
        ("https://host/store?token=abc&sig=d", "https://host/store?***"),
        (
            "cannot read 'ftp://a:b@host/x', nor ftp://c:d@host/y?z",
            "cannot read 'ftp://***@host/x', nor ftp://***@host/y?***",
        ),
        ("write to me@example.org, or is it so?", "write to me@example.org, or is it so?"),
        ("runs/store", "runs/store"),
    ],
)
def test_what_lets_somebody_in_is_taken_out_of_urls(text: str, shown: str) -> None:
    assert redacted(text) == shown
