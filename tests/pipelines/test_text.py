"""What may go to a terminal or a log: the dangerous first."""

import pytest

from maskmill.pipelines.text import clock, counted, one_line, readable, redacted, visible, without_escapes


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("", ""),
        ("plain [36m text", "plain [36m text"),
        ("\x1b[36mray::ShardWorker\x1b[39m (pid=3)", "ray::ShardWorker (pid=3)"),
        ("\x1b[?25lhidden\x1b[1~", "hidden"),
        ("\x1b]0;a title\x07after\x1b]8;;x\x1b\\link", "afterlink"),
        ("\x1b(Bcharset \x9b31mC1", "charset C1"),
    ],
)
def test_escapes_go(text, plain):
    assert without_escapes(text) == plain


def test_what_steers_a_terminal_is_written_out():
    assert visible("a\nb\x1b[2J\u202ec") == r"a\nb\x1b[2J\u202ec"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://user:pa/ss@bucket/key", "s3://***@bucket/key"),
        ("https://h/x?X-Amz-Signature=abc&y=1", "https://h/x?X-Amz-Signature=***&y=1"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
    ],
)
def test_credentials_are_not_shown(text, shown):
    assert redacted(text) == shown


def test_names_errors_and_times():
    assert readable("a\udcff.png") == r"a\xff.png"
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert [clock(seconds) for seconds in (0, 9.4, 61, 3723)] == ["0:00", "0:09", "1:01", "1:02:03"]


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 GPUs"), (1, "1 GPU"), (1.0, "1 GPU"), (0.5, "0.5 GPUs"), (10**7, "10000000 GPUs")],
)
def test_one_is_singular(number, said):
    assert counted(number, "GPU") == said
