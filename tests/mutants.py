"""Mutation testing: applies each mutant of ``tests/mutations`` to a copy of the tree and runs its tests.

    python tests/mutants.py [--json FILE] [--only NAME_OR_GLOB ...] [--jobs N]

A mutant is killed if one of its tests fails, or hangs. Survivors are printed as diffs. A mutant whose text
does not occur exactly once in its file, or whose tests fail without it, is an error and never killed. The
last line is ``K of N mutants killed``; the exit code is 0 unless there was an error or fewer than 95 % are
killed.

Every run of tests is a separate process, forked after importing libraries but nothing of ours, since imports
take longer than most tests.
"""

from __future__ import annotations

import argparse
import compileall
import fnmatch
import json
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from mutations.base import Mutant, all_mutants

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    "model",
    "envs",
    "rollouts",
    "rewards",
    "parl",
    "tests",
    "configs",
    "benchmarks",
    "examples",
    "pyproject.toml",
)
LIBRARIES = ("numpy", "pydantic", "pyarrow.parquet", "httpx", "starlette.applications", "hypothesis", "pytest_asyncio")
HEAVY = ("torch", "ray", "deepspeed")
FAST_S, SLOWER = 60.0, 10  # time limit of a run, at least and relative to the run without the mutant
PASSED = 0  # pytest's exit code


@dataclass(slots=True, kw_only=True)
class Verdict:
    """The result for a mutant: ``how`` is ``test``, ``hang``, ``survived`` or an error's text."""

    name: str
    file: str
    killed: bool
    how: str
    seconds: float = 0.0

    @property
    def error(self) -> bool:
        """Whether it is neither killed nor survived."""
        return self.how not in ("test", "hang", "survived")


@dataclass(slots=True)
class Job:
    """A run of tests: ``wrong``: temporary content of ``file``; ``code``: pytest's, -9 after ``limit_s``."""

    tests: tuple[str, ...]
    limit_s: float
    file: str = ""
    wrong: str = ""
    code: int = 0
    seconds: float = 0.0


class Bench:
    """Copies of the tree, one per job. No threads: a fork would leave their locks held."""

    def __init__(self, scratch: Path, jobs: int) -> None:
        self.kept = scratch / "kept"  # unaffected by changes of the working tree
        self._trees = [scratch / f"tree{number}" for number in range(jobs)]
        self._tokenizer = scratch / "tokenizer"
        _copy(self.kept)
        # by content, not by time: a file of the same size within the same second would count as unchanged
        compileall.compile_dir(self.kept, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
        for tree in self._trees:
            shutil.copytree(self.kept, tree)
        child = _fork(self._trees[0], lambda: _make_tokenizer(self._trees[0], self._tokenizer))
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise RuntimeError("the tests' tokenizer cannot be made")

    def run(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """All ``jobs``, in order of completion."""
        waiting, free = list(jobs)[::-1], list(self._trees)
        running: dict[int, tuple[Job, Path, float]] = {}
        while waiting or running:
            while waiting and free:
                job, tree = waiting.pop(), free.pop()
                if job.file:
                    (tree / job.file).write_text(job.wrong, encoding="utf-8")
                running[_fork(tree, partial(_run_tests, tree, job.tests, self._tokenizer))] = (
                    job,
                    tree,
                    time.monotonic(),
                )
            time.sleep(0.02)
            for child, (job, tree, began) in list(running.items()):
                done, status = os.waitpid(child, os.WNOHANG)
                if not done and time.monotonic() - began > job.limit_s:
                    os.killpg(child, signal.SIGKILL)
                    done, status = os.waitpid(child, 0)
                if done:
                    del running[child]
                    job.code, job.seconds = os.waitstatus_to_exitcode(status), round(time.monotonic() - began, 1)
                    if job.file:
                        shutil.copyfile(self.kept / job.file, tree / job.file)
                    free.append(tree)
                    yield job


def _fork(tree: Path, work: Callable[[], int]) -> int:
    """Run ``work`` in ``tree``, in a silent process group that exits with its result."""
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        os.setpgid(0, 0)
        _silent()
        os.chdir(tree)
        code = work()
    finally:
        os._exit(code)


def _copy(tree: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *COPIED],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)


def _silent() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)


def _enter(tree: Path) -> None:
    """Import modules from the copy from now on, also in child processes."""
    ours = {str(ROOT), str(ROOT / "tests"), ""}
    sys.path[:] = [str(tree), *(path for path in sys.path if path not in ours)]
    for name in [name for name in sys.modules if name.split(".")[0] == "mutations"]:
        del sys.modules[name]
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}


def _make_tokenizer(tree: Path, folder: Path) -> int:
    _enter(tree)
    sys.path.insert(1, str(tree / "tests"))
    from tiny import tiny_config

    from parl.cold_start.shipped import Recipe
    from parl.cold_start.vocabulary import build_tokenizer

    folder.mkdir()
    build_tokenizer(Recipe.of(tiny_config(folder))).save(folder)
    return 0


def _run_tests(tree: Path, tests: Iterable[str], tokenizer: Path) -> int:
    _enter(tree)
    os.environ["PARL_TEST_TOKENIZER"] = str(tokenizer)  # tests/conftest.py reuses it
    import pytest

    return int(pytest.main([*tests, "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]))


def _import(names: Iterable[str]) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in names:
        __import__(name)


def run(mutants: list[Mutant], jobs: int, told: Callable[[Verdict], None] = lambda verdict: None) -> list[Verdict]:
    """The verdict on each of ``mutants``, in order; ``told`` is called with each as it comes."""
    _import((*LIBRARIES, *HEAVY))
    verdicts: dict[str, Verdict] = {}

    def decided(mutant: Mutant, how: str, seconds: float = 0.0) -> None:
        killed = how in ("test", "hang")
        verdicts[mutant.name] = Verdict(name=mutant.name, file=mutant.file, killed=killed, how=how, seconds=seconds)
        told(verdicts[mutant.name])

    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        bench = Bench(Path(scratch), jobs)
        unmutated = {job.tests: job for job in bench.run(Job(tests, 600.0) for tests in {m.tests: 0 for m in mutants})}
        made: dict[tuple[str, str], Mutant] = {}
        tried = []
        for mutant in mutants:
            before = unmutated[mutant.tests]
            try:
                wrong = mutant.applied(bench.kept)
            except (ValueError, OSError, SyntaxError) as error:
                decided(mutant, f"{error}")
                continue
            if before.code != PASSED:
                decided(mutant, f"{mutant.name}: its tests end with {before.code} without it: {' '.join(mutant.tests)}")
                continue
            made[mutant.file, wrong] = mutant
            tried.append(Job(mutant.tests, FAST_S + SLOWER * before.seconds, mutant.file, wrong))
        for job in bench.run(tried):
            hows = {PASSED: "survived", -signal.SIGKILL: "hang"}
            decided(made[job.file, job.wrong], hows.get(job.code, "test"), job.seconds)
    return [verdicts[mutant.name] for mutant in mutants]


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the verdicts to this file")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="names, or globs such as 'rewards/*'")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs of tests at once")
    given = parser.parse_args()
    chosen = [mutant for mutant in all_mutants() if any(fnmatch.fnmatch(mutant.name, only) for only in given.only)]
    by_name = {mutant.name: mutant for mutant in chosen}
    width = max(map(len, by_name), default=0)

    def told(verdict: Verdict) -> None:
        print(f"{verdict.name:{width}}  {verdict.seconds:5.1f} s  {verdict.how}", flush=True)

    began = time.monotonic()
    verdicts = run(chosen, given.jobs, told)
    for verdict in verdicts:
        if not verdict.killed and not verdict.error:
            print(f"\n{verdict.name} survives {' '.join(by_name[verdict.name].tests)}")
            print(by_name[verdict.name].diff(ROOT))
    errors = [verdict.how for verdict in verdicts if verdict.error]
    killed = sum(verdict.killed for verdict in verdicts)
    if given.json:
        table = {"killed": killed, "total": len(verdicts), "mutants": [asdict(verdict) for verdict in verdicts]}
        given.json.write_text(json.dumps(table, indent=1) + "\n")
    print("".join(f"\nerror: {error}" for error in errors))
    print(f"{time.monotonic() - began:.0f} s")
    print(f"{killed} of {len(verdicts)} mutants killed")
    return int(bool(errors) or killed < 0.95 * len(verdicts))


if __name__ == "__main__":
    sys.exit(main())
