"""Do tests, claims and committed outputs hold on other CPUs? `python -m tools.portability`.

It runs the unit tests and the notebooks (by nbval, in a copy, against their committed outputs) in all settings of
kernels and threads that this machine can imitate, one setting after the other. Within a setting, pytest uses as many
processes as there are cores for their threads. It prints failures, and how much the value of each claim varies over the
settings; the claim's `varies` must not be smaller.

    python -m tools.portability --settings default-1 avx2-2 --only notebooks --notebooks 00 01
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pandas as pd

from memsub.io.files import load_json, save_json, save_text
from memsub_extra.notebooks.batch import project


def settings() -> dict[str, dict[str, str]]:
    """Names of settings to environment variables: kernels of ATen, instructions of oneDNN, threads."""
    environments = {}
    for aten, onednn, threads in product(("default", "avx2"), ("", "AVX2"), ("1", "2")):
        name = "-".join(filter(None, (aten, onednn and "onednn", threads)))
        environments[name] = {"ATEN_CPU_CAPABILITY": aten, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if onednn:
            environments[name]["ONEDNN_MAX_CPU_ISA"] = onednn
    return environments


def run_tests(root: Path, environment: dict[str, str], log: Path) -> bool:
    """Runs the unit tests in one setting; returns whether they passed."""
    return _run([], ["worksteal"], root, environment, log)


def run_notebooks(root: Path, folder: Path, only: list[str], environment: dict[str, str], log: Path) -> bool:
    """Runs the notebooks by nbval, in a copy with an empty run folder; returns whether they passed."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("notebooks", "papermill_params"):
        shutil.copytree(root / name, folder / name)
    notebooks = [str(p) for p in sorted((folder / "notebooks").glob("*.ipynb")) if p.name.startswith(tuple(only))]
    options = ["-p", "no:cacheprovider", "--nbval", "--nbval-cell-timeout", "3600"]
    options += ["--nbval-sanitize-with", str(folder / "notebooks" / "sanitize.cfg"), *notebooks]
    return _run(options, ["loadfile", "--no-loadscope-reorder"], folder, environment, log)


def _run(options: list[str], distribution: list[str], cwd: Path, environment: dict[str, str], log: Path) -> bool:
    command = [sys.executable, "-m", "pytest", *options]
    if (processes := (os.cpu_count() or 1) // int(environment["OMP_NUM_THREADS"])) > 1:
        command += ["-n", str(processes), "--dist", *distribution]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        env = os.environ | {"HF_HUB_OFFLINE": "1"} | environment
        return subprocess.run(command, cwd=cwd, env=env, stdout=out, stderr=out, check=False).returncode == 0


def claims(runs: dict[str, Path]) -> pd.DataFrame:
    """One row per claim: its values and verdicts in all run folders, and whether they agree.

    Returns:
        Columns bound and varies (from the claim), one column per run (values), verdicts, spread (of the values), and
        clear: the spread is at most `varies`, and the verdict is the same in all runs.
    """
    rows: dict[tuple[str, str], dict] = {}
    verdicts: dict[tuple[str, str], set[str]] = {}
    for setting, folder in runs.items():
        for file in sorted((folder / "findings").glob("*.json")):
            for sentence, claim in load_json(file)["claims"].items():
                row = rows.setdefault((file.stem, sentence), {"bound": claim["bound"], "varies": claim["varies"]})
                row[setting] = claim["value"]
                verdicts.setdefault((file.stem, sentence), set()).add(claim["verdict"])
    table = pd.DataFrame(rows).T
    values = table.drop(columns=["bound", "varies"])
    table["verdicts"] = [", ".join(sorted(verdicts[key])) for key in table.index]
    table["spread"] = (values.max(axis=1) - values.min(axis=1)).astype(float)
    table["clear"] = (table["spread"] <= table["varies"] + 1e-12) & ~table["verdicts"].str.contains(", ")
    return table


def report(rows: list[str], runs: dict[str, Path], out: Path) -> list[str]:
    """Writes results and the variation of each claim, as Markdown and JSON; returns sentences on claims that vary."""
    lines = ["| setting | what | | seconds |", "| --- | --- | --- | --- |", *rows] if rows else []
    table = claims(runs) if runs else pd.DataFrame({"clear": []})
    if runs:
        save_json({" | ".join(key): row for key, row in table.T.to_dict().items()}, out / "claims.json")
        lines += ["", f"Over {', '.join(runs)}:", ""]
        lines += ["| notebook | claim | bound | says it varies by | varied by | verdict |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        lines += [
            f"| {notebook} | {sentence} | {c['bound']:.3g} | {c['varies']:.2g} | {c['spread']:.2g} | {c['verdicts']} |"
            for (notebook, sentence), c in table.iterrows()
        ]
    save_text("\n".join([*lines, ""]), out / "report.md")
    return [
        f"varies by more than it says, or has several verdicts: {key}"
        for key, clear in table["clear"].items()
        if not clear
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.portability", description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="*", choices=list(settings()), default=list(settings()), metavar="NAME")
    parser.add_argument("--only", choices=["tests", "notebooks"], help="(default: both)")
    parser.add_argument("--notebooks", nargs="+", default=[""], metavar="NN", help="beginnings of their names")
    parser.add_argument("--collect", nargs="+", default=[], metavar="NAME=RUN", help="also compare runs made elsewhere")
    parser.add_argument("--out", type=Path, default=Path("runs/portability"), help="(runs/portability)")
    args = parser.parse_args()
    root, failed, rows = project(), [], []
    runs = {name: Path(run) for name, _, run in (pair.partition("=") for pair in args.collect)}
    for name in args.settings:
        environment, folder = settings()[name], (args.out / name).resolve()
        for what in ("tests", "notebooks"):
            if args.only not in (None, what):
                continue
            began, log = time.monotonic(), folder.parent / f"{name}-{what}.log"
            if what == "tests":
                passed = run_tests(root, environment, log)
            else:
                passed = run_notebooks(root, folder, args.notebooks, environment, log)
                runs[name] = folder / "runs" / "tiny"
            failed += [] if passed else [str(log)]
            rows.append(f"| {name} | {what} | {'passed' if passed else 'FAILED'} | {time.monotonic() - began:.0f} |")
            print(rows[-1], flush=True)
    failed += report(rows, runs, args.out)
    print((args.out / "report.md").read_text())
    print("all passed" if not failed else "\n".join(["FAILED:", *failed]))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
