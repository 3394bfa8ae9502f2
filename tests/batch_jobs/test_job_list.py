"""Jobs by their manifests: their state, and forgotten when their folder is gone."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from batch_jobs.job_list import job_status, jobs_in, known_jobs, note_job
from cluster.errors import UserError
from quantfleet import app
from tests.batch_jobs.test_job_folder import opened, rows, run_on


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTFLEET_CACHE", str(tmp_path / "cache"))


def test_states_and_counts(tmp_path: Path) -> None:
    done, half = tmp_path / "done", tmp_path / "half"
    run_on(done)
    folder = opened(half, rows_per_file=2)
    folder.add(rows(0, 1, 2))
    (running,) = jobs_in([half])
    folder.close()
    (finished, ended) = jobs_in([done, half])
    assert (running.state, finished.state, ended.state) == ("running", "finished", "ended early")
    assert (finished.counts.rows, finished.counts.errors, finished.num_rows) == (40, 1, 40)
    assert ended.counts.rows == 2
    with pytest.raises(UserError, match="holds no job"):
        jobs_in([tmp_path])


def test_jobs_are_known_until_their_folder_is_gone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_on(tmp_path / name)
        note_job(tmp_path / name)
    assert {job.output for job in known_jobs()} == {tmp_path / "a", tmp_path / "b"}
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "b" / "_job" / "settings").write_text("{")
    (left,) = known_jobs()
    assert (left.output, left.state) == (tmp_path / "b", "unreadable")
    assert job_status(tmp_path / "a") is None
    shown = CliRunner().invoke(app, ["jobs"], env={"COLUMNS": "200"})
    assert "unreadable" in shown.output
