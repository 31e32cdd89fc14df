"""Without a browser a test is skipped with the reason; under CI it fails."""

import browser
import pytest


@pytest.mark.parametrize(
    ("under_ci", "outcome"), [("false", pytest.skip.Exception), ("true", pytest.fail.Exception)]
)
def test_a_missing_browser(monkeypatch, under_ci, outcome):
    monkeypatch.setenv("CI", under_ci)
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    with pytest.raises(outcome, match="apt-get install chromium"):
        browser.chromium()
