"""What a command returns and says for each way in which it can end."""

from __future__ import annotations

import pytest

from tuner.core.errors import InvalidInput, StorageFailed, command


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (InvalidInput("--lr 0: must be above 0"), 2, "error: --lr 0: must be above 0\n"),
        (StorageFailed("the disk has failed for 120 s"), 3, "error: the disk has failed for 120 s\n"),
        (KeyboardInterrupt(), 130, ""),
        (None, 1, ""),
    ],
)
def test_every_end_has_its_status(
    raised: BaseException | None, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @command
    def main(argument: str) -> int:
        if raised is not None:
            raise raised
        return len(argument)

    assert main("x") == status
    assert capsys.readouterr() == ("", said)


def test_what_nobody_foresaw_is_not_hidden() -> None:
    @command
    def main() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()
