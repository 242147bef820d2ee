"""The stubs: mypy and pyright find nothing in the READMEs' Python and every mistake in `typed.py`, and the stubs
say what the package is."""

import ast
import importlib.util
import inspect
import json
import pathlib
import re
import subprocess
import sys

import pytest

import gradus

HERE = pathlib.Path(__file__).resolve().parent
PACKAGE = HERE.parent / "src" / "gradus"
READMES = (HERE.parents[2] / "README.md", HERE.parent / "README.md")
BLOCKS = [code for file in READMES for code in re.findall(r"```python\n(.*?)```", file.read_text(), re.DOTALL)]
TYPED = HERE / "typed.py"
# (file, line) of what a checker complains about.
Found = set[tuple[str, int]]


def run(*command: str, folder: pathlib.Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True)


def by_mypy(folder: pathlib.Path) -> tuple[Found, str]:
    # Of what is not installed here (torch, TRL) everything is allowed.
    flags = ["--ignore-missing-imports", "--follow-imports=silent", "--no-error-summary", "--check-untyped-defs"]
    done = run("mypy", *flags, "--cache-dir=cache", *map(str, sorted(folder.glob("*.py"))), folder=folder)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^(?:.*/)?(\w+\.py):(\d+): error:", done.stdout, re.MULTILINE)
    return {(file, int(line)) for file, line in found}, done.stdout


def by_pyright(folder: pathlib.Path) -> tuple[Found, str]:
    config = {"include": ["."], "pythonPath": sys.executable, "reportMissingImports": False}
    (folder / "pyrightconfig.json").write_text(json.dumps(config | {"reportMissingModuleSource": False}))
    done = run("pyright", "--outputjson", "--pythonpath", sys.executable, folder=folder)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads(done.stdout[done.stdout.index("{") :])
    errors = [d for d in report["generalDiagnostics"] if d["severity"] == "error"]
    found = {(pathlib.Path(d["file"]).name, d["range"]["start"]["line"] + 1) for d in errors}
    return found, "\n".join(f"{d['file']}:{d['range']['start']['line'] + 1}: {d['message']}" for d in errors)


@pytest.mark.parametrize("checker,find", [("mypy", by_mypy), ("pyright", by_pyright)])
def test_checkers_see_the_package(checker, find, tmp_path, monkeypatch):
    pytest.importorskip(checker)
    if importlib.util.find_spec("gradus") is None or pathlib.Path(gradus.__file__).parent == PACKAGE:
        monkeypatch.setenv("MYPYPATH", str(PACKAGE.parent))
        monkeypatch.setenv("PYTHONPATH", str(PACKAGE.parent))
    for i, code in enumerate(BLOCKS):
        (tmp_path / f"block_{i}.py").write_text(code)
    (tmp_path / "typed.py").write_text(TYPED.read_text())
    found, text = find(tmp_path)
    assert len(BLOCKS) >= 3
    wrong = {("typed.py", i + 1) for i, line in enumerate(TYPED.read_text().split("\n")) if line.endswith("# wrong")}
    assert found == wrong and len(wrong) > 8, text


def test_the_stubs_say_what_the_package_is():
    """Names, signatures, results and constants of the stub are those of the module as it runs."""
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    results = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    values = {n.target.id: n.value for n in tree.body if isinstance(n, ast.AnnAssign) and n.value is not None}
    assert {name: ast.literal_eval(value) for name, value in values.items()} == gradus.CONSTANTS
    (listed,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"]
    assert ast.literal_eval(listed) == gradus.__all__
    for name in gradus._functions.FUNCTIONS:
        given, real = functions[name], list(inspect.signature(getattr(gradus, name)).parameters.values())
        assert [a.arg for a in given.args] == [p.name for p in real if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert [a.arg for a in given.kwonlyargs] == [p.name for p in real if p.kind is p.KEYWORD_ONLY]
        # `None`, or `...` for the library's own number.
        defaults = dict(zip([a.arg for a in given.kwonlyargs], given.kw_defaults))
        assert all(p.default is not p.empty for p in real if p.name in defaults) and not given.defaults
        assert all((d.value is None) == (p.default is None) for p in real if (d := defaults.get(p.name)))
        result = gradus._fields.op_of(name).result
        fields = [node.target.id for node in results[f"_{result.__name__}"].body]
        assert tuple(fields) == result._fields


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py*")), ids=lambda path: path.name)
def test_every_module_says_what_it_exports(path):
    if path.suffix not in (".py", ".pyi"):
        pytest.skip("no source")
    tree = ast.parse(path.read_text())
    (listed,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    names = [item.value for item in listed.elts if isinstance(item, ast.Constant)]
    assert len(set(names)) == len(names)
    bound = {
        alias.asname or alias.name
        for n in ast.walk(tree)
        if isinstance(n, (ast.Import, ast.ImportFrom))
        for alias in n.names
    }
    bound |= {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    bound |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    assert set(names) <= bound, set(names) - bound
    assert names


def test_every_name_that_is_exported_is_there():
    assert all(hasattr(gradus, name) for name in gradus.__all__)
    assert len(set(gradus.__all__)) == len(gradus.__all__)
