"""What is nobody's business enters nothing that a run writes, wherever it stood."""

import json
import os
from pathlib import Path

import pytest

from reports import wording

SECRET = "hf_not-for-your-eyes"
LEAKS = '''
    @pytest.mark.parametrize("place", ["{home}/models/chat", "<script>alert(1)</script>"])
    def test_leaks(judge, place):
        """TEST-2: one MUST be two."""
        judge.evidence["asked"] = {{"{home}/cache": ["Bearer {secret}"]}}
        judge.exactly("{home}/one of {secret}", "<script>{secret}</script>", "https://me:pass@example.org/{home}")
'''


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home folder, and a secret in the environment."""
    found = tmp_path / "home" / "me"
    found.mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")))
    monkeypatch.setenv("HOME", str(found))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return found


def test_no_file_of_a_run_holds_a_secret_or_a_home(verdict_of, home, tmp_path):
    deployment = f"""
        [deployment]
        name = "<script>{SECRET}</script> of {home}"
        owner = "{home}"
    """
    found = verdict_of([LEAKS.format(home=home, secret=SECRET)], deployment)

    assert found.code == 1
    (folder,) = (f.parent for f in tmp_path.rglob("run.json"))
    files = {f.name: f.read_text(encoding="utf-8") for f in folder.iterdir()}
    assert set(files) >= {"deployment.toml", "report.html", "report.md", "report.xml", "records.jsonl"}
    for name, text in files.items():
        assert SECRET not in text, name
        assert str(home) not in text, name
        assert "me:pass" not in text, name
    assert "$HF_TOKEN" in files["records.jsonl"]
    assert "<script" not in files["report.html"] + files["report.xml"]
    assert "<script" not in "".join(files["report.md"].split("```")[::2])


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/home/me", "~"),
        ("/home/me/models and /home/me", "~/models and ~"),
        ("/home/melissa /data/home/me", "/home/melissa /data/home/me"),
        ("https://me:word@example.org/x, me@example.org", "https://…@example.org/x, me@example.org"),
        (("a", {"/home/me": [1, None, f"Bearer {SECRET}"]}), ("a", {"~": [1, None, "Bearer $HF_TOKEN"]})),
    ],
)
def test_what_is_shown(monkeypatch, said, shown):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("SHORT_KEY", "a")

    assert wording.private(said) == shown


ODD = 'a\\b"c\u00e9\U0001f600d'


@pytest.mark.parametrize("told", ["/home/m\u00e9/x", f"Bearer {SECRET}", f"is {ODD}.", "ssh://host"])
def test_a_line_that_may_tell_is_looked_into(monkeypatch, told):
    monkeypatch.setenv("HOME", "/home/m\u00e9")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("A_PASSWORD", ODD)

    assert wording.may_tell(json.dumps({"evidence": [told, 1]}))
    assert not wording.may_tell(json.dumps({"evidence": ["/homely", 1]}))


def test_a_root_that_is_called_a_home_is_no_ones(monkeypatch):
    monkeypatch.setenv("HOME", "/")

    assert wording.homeless("/models/chat") == "/models/chat"
