"""The workflows of .github: what actionlint would say that needs no network. Elsewhere nothing reads them."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
TOP = {"name", "run-name", "on", "permissions", "env", "defaults", "concurrency", "jobs"}
JOB = {
    *("name", "permissions", "needs", "if", "runs-on", "environment", "concurrency", "outputs", "env", "defaults"),
    *("steps", "timeout-minutes", "strategy", "continue-on-error", "container", "services", "uses", "with", "secrets"),
}
STEP = {
    *("id", "if", "name", "uses", "run", "working-directory", "shell", "with", "env", "continue-on-error"),
    "timeout-minutes",
}
STRATEGY = {"matrix", "fail-fast", "max-parallel"}
EVENTS = {"push", "pull_request", "schedule", "workflow_dispatch", "workflow_call", "release"}
CONTEXTS = {
    "github",
    "env",
    "vars",
    "job",
    "jobs",
    "steps",
    "runner",
    "secrets",
    "strategy",
    "matrix",
    "needs",
    "inputs",
}
FUNCTIONS = {"always", "success", "failure", "cancelled", "contains", "startsWith", "endsWith", "format", "join"}
FUNCTIONS |= {"toJSON", "fromJSON", "hashFiles"}


def wrong(text: str) -> list[str]:
    """What is wrong with a workflow, a sentence each."""
    try:
        workflow = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"no YAML: {error}"]
    workflow = {"on" if key is True else key: value for key, value in workflow.items()}  # YAML 1.1 reads `on` as true
    said = _unknown("the workflow", workflow, TOP)
    said += [f"{key!r} is missing" for key in ("on", "jobs") if not workflow.get(key)]
    events = workflow.get("on") or {}
    said += _unknown("`on`", [events] if isinstance(events, str) else events, EVENTS)
    if isinstance(events, dict):
        for row in events.get("schedule") or []:
            if not re.fullmatch(r"[\d*/,-]+( [\d*/,-]+){4}", row["cron"]):
                said.append(f"the cron {row['cron']!r} has not five fields")
    jobs = workflow.get("jobs") or {}
    for name, job in jobs.items():
        said += _of_job(name, job, jobs)
    return said


def _unknown(where, given, known) -> list[str]:
    return [
        f"{where} has the unknown key {key!r}; known: {', '.join(sorted(known))}" for key in given if key not in known
    ]


def _of_job(name, job, jobs) -> list[str]:
    said = _unknown(f"job {name}", job, JOB) + _unknown(f"job {name}, strategy", job.get("strategy", {}), STRATEGY)
    said += [f"job {name} has no {key!r}" for key in ("runs-on", "steps") if key not in job and "uses" not in job]
    needs = job.get("needs", [])
    said += [
        f"job {name} needs {n!r}, which is none"
        for n in ([needs] if isinstance(needs, str) else needs)
        if n not in jobs
    ]
    matrix = job.get("strategy", {}).get("matrix", {})
    axes = {*matrix, *(key for row in matrix.get("include", []) for key in row)} - {"include", "exclude"}
    said += _of_expressions(f"job {name}", [{key: value for key, value in job.items() if key != "steps"}], axes)
    for i, step in enumerate(job.get("steps") or [], 1):
        where = f"job {name}, step {i}"
        said += _unknown(where, step, STEP) + _of_expressions(where, [step], axes)
        if ("uses" in step) == ("run" in step):
            said.append(f"{where} has not one of `uses` and `run`")
        if not re.fullmatch(r"(\./.+|[\w.-]+/[\w./-]+@[\w.-]+|docker://.+)", step.get("uses", "./none")):
            said.append(f"{where} uses {step['uses']!r}; owner/name@version is expected")
        if "run" in step:
            said += _of_script(where, step["run"])
    return said


def _of_expressions(where, values, axes) -> list[str]:
    """Expressions `${{ ... }}` in values, and `if`, which is one without braces too."""
    said, texts = [], []

    def walk(value, key=""):
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, name)
        elif isinstance(value, list):
            for inner in value:
                walk(inner, key)
        elif isinstance(value, str):
            inside = re.findall(r"\$\{\{(.*?)\}\}", value, re.DOTALL)
            if value.count("${{") != len(inside) or value.count("}}") != len(inside):
                said.append(f"{where}: braces of an expression do not match in {value!r}")
            texts.extend(inside or ([value] if key == "if" else []))

    for value in values:
        walk(value)
    for text in texts:
        bare = re.sub(r"'(?:[^']|'')*'", "''", text)
        if bare.count("(") != bare.count(")") or bare.count("[") != bare.count("]") or '"' in bare:
            said.append(f"{where}: {text.strip()!r} is no expression: brackets do not match, or quotes are not single")
        for word, after in re.findall(r"(?<![\w.-])([A-Za-z_][\w-]*)\s*([.(]?)", bare):
            known = FUNCTIONS if after == "(" else CONTEXTS if after == "." else {"true", "false", "null", *CONTEXTS}
            said += [f"{where}: unknown name {word!r} in {text.strip()!r}"] * (word not in known)
        said += [f"{where}: the matrix has no {a!r}" for a in re.findall(r"\bmatrix\.([\w-]+)", bare) if a not in axes]
    return said


def _of_script(where, script: str) -> list[str]:
    """Whether bash reads a script, and whether make targets, modules and files that it names are there."""
    script = re.sub(r"\$\{\{.*?\}\}", "expression", script, flags=re.DOTALL)
    parsed = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    said = [f"{where}: bash cannot read it: {parsed.stderr.strip()}"] if parsed.returncode else []
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    said += [f"{where}: make has no {t!r}" for t in re.findall(r"\bmake +([\w-]+)", script) if t not in targets]
    for module in re.findall(r"-m ((?:tools|memsub\w*)(?:\.\w+)*)", script):
        place = ROOT / ("" if module.startswith("tools") else "src") / module.replace(".", "/")
        if not (place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()):
            said.append(f"{where}: there is no module {module}")
    for file in re.findall(r"(?<![\w/.$-])((?:[\w.-]+/)*[\w-]+\.(?:py|sh|ya?ml|lock|toml|txt))\b", script):
        said += [f"{where}: there is no file {file}"] * (not (ROOT / file).is_file())
    return said


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_is_right(path):
    assert wrong(path.read_text()) == []


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("runs-on: ubuntu-latest", "runs_on: ubuntu-latest", "unknown key 'runs_on'"),
        ("timeout-minutes:", "timeout:", "unknown key 'timeout'"),
        ("${{ matrix.os }}", "${{ matrix.system }}", "the matrix has no 'system'"),
        ("${{ matrix.os }}", "${{ matrix.os }", "braces of an expression do not match"),
        ("github.event_name", "githab.event_name", "unknown name 'githab'"),
        ("== 'schedule'", '== "schedule"', "quotes are not single"),
        ("make test-slow", "make tests", "make has no 'tests'"),
        ("make test-slow", "if true; make test", "bash cannot read it"),
        ("make test-slow", ".venv/bin/python -m tools.nothing", "no module tools.nothing"),
        ("-f environment.yml", "-f environments.yml", "no file environments.yml"),
        ("actions/checkout@v4", "actions/checkout", "owner/name@version is expected"),
        ("17 3 * * *", "17 3 * *", "has not five fields"),
        ("pull_request:", "pull_requests:", "unknown key 'pull_requests'"),
        ("  pull_request:", " pull_request:", "no YAML"),
    ],
)
def test_what_is_wrong_is_found(before, after, told):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert before in text
    assert any(told in sentence for sentence in wrong(text.replace(before, after))), wrong(text.replace(before, after))
